"""The steps that online training keeps of a stream, for updates that go back before the chunk at hand."""

import jax
import jax.numpy as jnp

from jax_bptt.checks.arguments import arrays, check_like
from jax_bptt.engine.leaves import is_key
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import PyTree
from jax_bptt.training.updates import Steps


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
