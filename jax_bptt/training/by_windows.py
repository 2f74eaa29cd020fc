"""Online training window by window: an update by the gradient of the k2 steps that end with the newest k1.

    stored state → burn-in → window → update → the state with which the next window begins

Where a window reaches back before the chunk, the carry keeps the steps that it needs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_bptt.checks.arguments import Arguments
from jax_bptt.checks.options import describe
from jax_bptt.engine.call import Call
from jax_bptt.engine.schedule import Schedule
from jax_bptt.model import Loss, PyTree, Step
from jax_bptt.training.stream import check_chunk, check_chunk_like, empty_steps, join_steps, scan_updates
from jax_bptt.training.updates import OF_STREAMS, Metrics, Online, Steps, Stream, TrainState, check_train_state, init


def update_by_windows(
    step: Step,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    scheduled: Schedule,
    counted: np.ndarray,
    gradient: Callable[[Call, Schedule], tuple[tuple[jax.Array, PyTree], PyTree]],
    update_of: Callable[..., tuple[TrainState, Metrics]],
) -> Online:
    """Online training with truncated BPTT, of windows of so many steps, those before their first loss included.

    Args:
        scheduled: that of a window, which returns the state after its first k1 steps, where the next one begins.
        counted: which of its steps have losses.
    """
    k1, kept = scheduled.returned, len(counted) - scheduled.returned

    def begin(
        params: PyTree, state: PyTree, xs: PyTree = None, targets: PyTree = None, key: jax.Array | None = None
    ) -> TrainState:
        if key is not None:
            raise ValueError(f"key: found {describe(key)}, expected None: nothing is drawn in truncated BPTT")
        if not kept:
            return init(params, optimizer, state)
        steps = empty_steps(state, xs, targets, kept, "k2 + burn_in is more than k1")
        return init(params, optimizer, Stream(state, jnp.zeros((), jnp.int32), steps))

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        state = _check_carry(train_state.carry, xs, targets, kept)
        arguments = Arguments(train_state.params, state, xs, targets, mask, reset)
        call = check_chunk(step, loss, arguments, k1)

        def window(old: TrainState, new: Steps) -> tuple[TrainState, Metrics]:
            steps = join_steps(old.carry.kept, new, (k1, *call.batch)) if kept else new
            live = jnp.ones(kept + k1, bool)
            of_window = call._replace(params=old.params, state=old.carry, steps=kept + k1, **steps._asdict())
            if kept:
                live = jnp.arange(kept + k1) >= kept - old.carry.read
                of_window = _while_live(of_window, old.carry.state, live, kept)
            if kept or not counted.all():
                mask = jnp.ones((kept + k1, *call.batch), call.loss_dtype) if steps.mask is None else steps.mask
                mask = jnp.where((live & counted)[:, None], mask, 0).astype(call.loss_dtype)
                of_window = of_window._replace(mask=mask)
            (value, carry), grads = gradient(of_window, scheduled)
            if kept:
                read = jnp.minimum(old.carry.read + k1, kept)
                carry = Stream(carry, read, jax.tree.map(lambda a: a[k1:], steps))
            return update_of(old, value, carry, grads)

        return scan_updates(window, train_state, Steps(call.xs, call.targets, call.mask, call.reset), k1)

    return Online(begin, update)


def _while_live(call: Call, state: PyTree, live: jax.Array, kept: int) -> Call:
    """A call whose first steps, those that are not live, leave the state alone, whatever their inputs are."""

    def step(params: PyTree, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        x, live = x
        after, output = call.step(params, state, x)
        return jax.tree.map(lambda a, b: jnp.where(live, a, b), after, state), output

    xs = jax.tree.map(lambda x: jax.vmap(jnp.where, in_axes=(0, 0, None))(live, x, x[kept]), call.xs)
    return call._replace(step=step, state=state, xs=(xs, jnp.broadcast_to(live[:, None], (call.steps, *call.batch))))


def _check_carry(carry: PyTree, xs: PyTree, targets: PyTree, kept: int) -> PyTree:
    """The recurrent state in the carry, which fits the chunk that comes next."""
    expected, than = ("a Stream", "more") if kept else ("a recurrent state", "no more")
    if isinstance(carry, OF_STREAMS) != bool(kept) or isinstance(carry, OF_STREAMS[1:]):
        found = f"a {type(carry).__name__}" if isinstance(carry, OF_STREAMS) else "a recurrent state"
        raise TypeError(
            f"train_state.carry: found {found}, expected {expected}, since k2 + burn_in is {than} than k1; the "
            "init that train_online returns with the update makes it"
        )
    if not kept:
        return carry
    if len(carry.kept.mask) != kept:
        raise ValueError(
            f"train_state.carry: found a Stream of {len(carry.kept.mask)} steps, expected k2 + burn_in - k1 = {kept}; "
            "the init that train_online returns with the update makes it"
        )
    check_chunk_like(carry.kept, xs, targets)
    return carry.state
