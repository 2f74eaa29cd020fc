"""Online training in which it is drawn how far back each update goes: truncation without bias, of a stream.

    n windows drawn → the last n − 1 that are kept, and the new one → update

Of a window that goes back over n − 1 boundaries δ is scaled at each, as much as it was likely to be cut there, so that
on average the gradient is that of all the windows that are kept. What was not drawn is not computed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_bptt.checks.arguments import Arguments
from jax_bptt.checks.trees import arrays, check_key
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import accumulator
from jax_bptt.engine.schedule import Schedule
from jax_bptt.model import Loss, PyTree, Step
from jax_bptt.training.stream import check_chunk, check_chunk_like, empty_steps, join_steps, scan_updates
from jax_bptt.training.updates import DrawnStream, Metrics, Online, Steps, TrainState, check_train_state, init


def update_drawn_windows(
    step: Step,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    k1: int,
    cuts: Sequence[float],
    gradient: Callable[[Call, Schedule], tuple[tuple[jax.Array, PyTree], PyTree]],
    update_of: Callable[..., tuple[TrainState, Metrics]],
) -> Online:
    """Online training over windows of k1 steps.

    Args:
        cuts: the probability of a cut at each boundary that an update may go back over, the newest first.
    """
    most = len(cuts) + 1

    def begin(
        params: PyTree, state: PyTree, xs: PyTree = None, targets: PyTree = None, key: jax.Array | None = None
    ) -> TrainState:
        kept = empty_steps(state, xs, targets, (most - 1) * k1, "an update may go back before it")
        states = jax.tree.map(lambda a: jnp.broadcast_to(a, (most, *a.shape)), arrays("state", state))
        return init(params, optimizer, DrawnStream(states, jnp.zeros((), jnp.int32), kept, check_key(key)))

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        state = _check_carry(train_state.carry, most, k1, xs, targets)
        arguments = Arguments(train_state.params, state, xs, targets, mask, reset)
        call = check_chunk(step, loss, arguments, k1)

        def window(old: TrainState, new: Steps) -> tuple[TrainState, Metrics]:
            carry: DrawnStream = old.carry
            key, drawn_from = jax.random.split(carry.key)
            handed = jax.random.bernoulli(drawn_from, 1 - jnp.asarray(cuts, float), (most - 1,))
            back = jnp.minimum(jnp.cumprod(handed.astype(jnp.int32)).sum(dtype=jnp.int32), carry.read)
            steps = join_steps(carry.kept, new, (k1, *call.batch))
            whole = call._replace(params=old.params, **steps._asdict())
            ways = [functools.partial(_go_back, whole, carry.states, k1, cuts[:n], gradient) for n in range(most)]
            (value, state), grads = jax.lax.switch(back, ways)
            states = jax.tree.map(lambda a, b: jnp.concatenate([a[1:], b[None]]), carry.states, state)
            read, kept = jnp.minimum(carry.read + 1, most - 1), jax.tree.map(lambda a: a[k1:], steps)
            return update_of(old, value, DrawnStream(states, read, kept, key), grads)

        return scan_updates(window, train_state, Steps(call.xs, call.targets, call.mask, call.reset), k1)

    return Online(begin, update)


def _go_back(
    whole: Call,
    states: PyTree,
    k1: int,
    cuts: Sequence[float],
    gradient: Callable[[Call, Schedule], tuple[tuple[jax.Array, PyTree], PyTree]],
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """The gradient of the newest k1 losses of a call, back over so many boundaries; δ is scaled at each."""
    steps = (len(cuts) + 1) * k1
    newest = {name: jax.tree.map(lambda a: a[-steps:], getattr(whole, name)) for name in Steps._fields}
    gates = np.ones(steps)
    gates[k1::k1] = [1 / (1 - cut) for cut in reversed(cuts)]
    dtype = accumulator(whole.loss_dtype)
    gate = jnp.broadcast_to(jnp.asarray(gates, dtype)[:, None], (steps, *whole.batch)) if cuts else None
    first = jax.tree.map(lambda a: a[-1 - len(cuts)], states)
    of_window = whole._replace(state=first, steps=steps, gate=gate, **newest)
    return gradient(of_window, schedule.exact(steps, returned=steps, context=steps - k1))


def _check_carry(carry: Any, most: int, k1: int, xs: PyTree, targets: PyTree) -> PyTree:
    """The state that comes next, of a carry that fits what is drawn and the chunk that was read."""
    if not isinstance(carry, DrawnStream):
        raise TypeError(
            f"train_state.carry: found {type(carry).__name__}, expected a DrawnStream, since windows are drawn; the "
            "init that train_online returns with the update makes it"
        )
    found = {len(leaf) for leaf in jax.tree.leaves(carry.states)}, jax.tree.leaves(carry.kept)[-1].shape[0]
    if found != ({most}, (most - 1) * k1):
        raise ValueError(
            f"train_state.carry: found a DrawnStream of {found[1]} steps, expected k2 - k1 = {(most - 1) * k1}; the "
            "init that train_online returns with the update makes it"
        )
    check_chunk_like(carry.kept, xs, targets)
    return jax.tree.map(lambda a: a[-1], carry.states)
