"""Online training window by window: an update by the gradient of the k2 steps that end with the newest k1.

stored state → burn-in → window → update → the state with which the next window begins
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_bptt.checks.arguments import Arguments, arrays, check_call, check_like
from jax_bptt.checks.options import describe
from jax_bptt.engine.flatten import Call
from jax_bptt.engine.leaves import is_key
from jax_bptt.engine.schedule import Schedule
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Loss, PyTree, Step
from jax_bptt.training.updates import Metrics, Online, Steps, Stream, TrainState, check_train_state, init


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
        call = check_call(step, loss, Arguments(train_state.params, state, xs, targets, mask, reset), argnums=(0,))
        if call.steps % k1:
            raise ValueError(f"xs: found {call.steps} time steps, expected a multiple of k1 = {k1}, one update each")

        def window(old: TrainState, new: Steps) -> tuple[TrainState, Metrics]:
            steps, live = (
                (join_steps(old.carry.kept, new, (k1, *call.batch)) if kept else new),
                jnp.ones(kept + k1, bool),
            )
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

        steps = Steps(call.xs, call.targets, call.mask, call.reset)
        windows = jax.tree.map(lambda a: a.reshape(a.shape[0] // k1, k1, *a.shape[1:]), steps)
        return jax.lax.scan(window, train_state, windows)

    return Online(begin, update)


def join_steps(kept: Steps, new: Steps, shape: tuple[int, ...]) -> Steps:
    """The steps kept of a stream and after them the new ones, `[k1, B, …]`."""
    mask = jnp.ones(shape) if new.mask is None else new.mask.astype(float)
    new = new._replace(mask=mask, reset=jnp.zeros(shape, bool) if new.reset is None else new.reset)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kept, new)


def _while_live(call: Call, state: PyTree, live: jax.Array, kept: int) -> Call:
    """A call whose first steps, those that are not live, leave the state alone, whatever their inputs are."""

    def step(params: PyTree, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        x, live = x
        after, output = call.step(params, state, x)
        return jax.tree.map(lambda a, b: jnp.where(live, a, b), after, state), output

    xs = jax.tree.map(lambda x: jax.vmap(jnp.where, in_axes=(0, 0, None))(live, x, x[kept]), call.xs)
    return call._replace(step=step, state=state, xs=(xs, jnp.broadcast_to(live[:, None], (call.steps, *call.batch))))


def empty_steps(state: PyTree, xs: PyTree, targets: PyTree, kept: int, why: str) -> Steps:
    """So many steps in the place of those of a stream of which nothing was read yet."""

    def like(name: str, tree: PyTree) -> PyTree:
        if tree is None:
            raise TypeError(f"{name}: found None, expected those of a chunk, since {why}")
        for leaf in jax.tree.leaves(tree):
            if jnp.ndim(leaf) < 2:
                raise ValueError(f"{name}: found shape {jnp.shape(leaf)}, expected [T, B, …]")
        return jax.tree.map(lambda a: _zeros(kept, jnp.asarray(a)), tree)

    xs, targets, shape = like("xs", xs), like("targets", targets), (kept, jax.tree.leaves(state)[0].shape[0])
    return Steps(xs, targets, jnp.zeros(shape), jnp.zeros(shape, bool))


def _zeros(steps: int, a: jax.Array) -> jax.Array:
    """`[steps, B, …]` like `a`; copies of its first step where there are no zeros of its kind: PRNG keys."""
    if is_key(a):
        return jnp.broadcast_to(a[:1], (steps, *a.shape[1:]))
    return jnp.zeros((steps, *a.shape[1:]), a.dtype)


def _check_carry(carry: PyTree, xs: PyTree, targets: PyTree, kept: int) -> PyTree:
    """The recurrent state in the carry, which fits the chunk that comes next."""
    expected, than = ("a Stream", "more") if kept else ("a recurrent state", "no more")
    if isinstance(carry, Stream) != bool(kept):
        found = "a recurrent state" if kept else "a Stream"
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


def check_chunk_like(kept: Steps, xs: PyTree, targets: PyTree) -> None:
    """That the steps of a chunk are like those that were kept of the one before."""
    for name, before, found in (("xs", kept.xs, xs), ("targets", kept.targets, targets)):
        check_like(
            without_leading(arrays(name, found), 1),
            without_leading(before, 1),
            lambda path, name=name: f"{name}{jax.tree_util.keystr(path or ())}: found",
            f"(without the time axis) as in train_state.carry.kept.{name}",
        )
