"""A stream as online training reads it: chunk by chunk, in windows of k1 steps, of which some are kept.

    chunk → windows → an update each, of a window and of what is kept of those before it

What is kept is in the carry, and checked against the chunk that comes next.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.trees import arrays, check_like
from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import is_key
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Loss, PyTree, Step
from jax_bptt.training.updates import Metrics, Steps, TrainState


def check_chunk(step: Step, loss: Loss, arguments: Arguments, k1: int) -> Call:
    """A chunk of whole windows, checked."""
    call = check_call(step, loss, arguments, argnums=(0,))
    if call.steps % k1:
        raise ValueError(f"xs: found {call.steps} time steps, expected a multiple of k1 = {k1}, one update each")
    return call


def scan_updates(
    window: Callable[[TrainState, Steps], tuple[TrainState, Metrics]], train_state: TrainState, steps: Steps, k1: int
) -> tuple[TrainState, Metrics]:
    """The updates of a chunk, one for each window of k1 steps."""
    windows = jax.tree.map(lambda a: a.reshape(a.shape[0] // k1, k1, *a.shape[1:]), steps)
    return jax.lax.scan(window, train_state, windows)


def join_steps(kept: Steps, new: Steps, shape: tuple[int, ...]) -> Steps:
    """The steps kept of a stream and after them the new ones, `[k1, B, …]`."""
    mask = jnp.ones(shape) if new.mask is None else new.mask.astype(float)
    new = new._replace(mask=mask, reset=jnp.zeros(shape, bool) if new.reset is None else new.reset)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kept, new)


def empty_steps(state: PyTree, xs: PyTree, targets: PyTree, kept: int, why: str) -> Steps:
    """So many steps in the place of those of a stream of which nothing was read yet."""

    def like(name: str, tree: PyTree) -> PyTree:
        for leaf in jax.tree.leaves(tree):
            if jnp.ndim(leaf) < 2:
                raise ValueError(f"{name}: found shape {jnp.shape(leaf)}, expected [T, B, …]")
        return jax.tree.map(lambda a: _zeros(kept, jnp.asarray(a)), tree)

    if xs is None and targets is None:
        raise TypeError(f"xs: found None, expected those of a chunk, since {why}")
    xs, targets, shape = like("xs", xs), like("targets", targets), (kept, jax.tree.leaves(state)[0].shape[0])
    return Steps(xs, targets, jnp.zeros(shape), jnp.zeros(shape, bool))


def _zeros(steps: int, a: jax.Array) -> jax.Array:
    """`[steps, B, …]` like `a`; copies of its first step where there are no zeros of its kind: PRNG keys."""
    if is_key(a):
        return jnp.broadcast_to(a[:1], (steps, *a.shape[1:]))
    return jnp.zeros((steps, *a.shape[1:]), a.dtype)


def check_chunk_like(kept: Steps, xs: PyTree, targets: PyTree) -> None:
    """That the steps of a chunk are like those that were kept of the one before."""
    for name, before, found in (("xs", kept.xs, xs), ("targets", kept.targets, targets)):
        check_like(
            without_leading(arrays(name, found), 1),
            without_leading(before, 1),
            lambda path, name=name: f"{name}{jax.tree_util.keystr(path or ())}: found",
            f"(without the time axis) as in train_state.carry.kept.{name}",
        )
