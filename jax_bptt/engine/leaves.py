"""Lists of leaves, in the order of `jax.tree.leaves`, with None where a leaf has no derivative or none is asked for.

Params, state, inputs, δ and all cotangents are such lists inside the engine. `differentiable` makes one with None in
it, `combine` fills it up again, and the arithmetic of cotangents takes None for zero.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Leaves = list[Any]
"""Arrays, or None."""


def differentiable(leaves: Iterable[Any]) -> Leaves:
    """The leaves, with None in place of those that have no derivative: integers, booleans, PRNG keys."""
    return [leaf if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.inexact) else None for leaf in leaves]


def combine(some: Leaves, leaves: Leaves) -> Leaves:
    """`leaves`, with those of `some` that are not None in their places."""
    return [leaf if new is None else new for new, leaf in zip(some, leaves, strict=True)]


def only(chosen: Iterable[Any], leaves: Leaves) -> Leaves:
    """The leaves that are chosen: where `chosen` is neither None nor False; None in place of the others."""
    return [None if c is None or c is False else leaf for c, leaf in zip(chosen, leaves, strict=True)]


def add(some: Leaves, more: Leaves) -> Leaves:
    """The sum, leaf by leaf, in the dtype of the first."""
    return [b if a is None else a if b is None else a + b.astype(a.dtype) for a, b in zip(some, more, strict=True)]


def zeros(shape: tuple[int, ...], leaves: Leaves) -> Leaves:
    """Zeros of `shape` in front of the axes of each leaf."""
    return jax.tree.map(lambda a: jnp.zeros((*shape, *a.shape), a.dtype), leaves)


def where(mask: jax.Array, leaves: Leaves) -> Leaves:
    """The leaves where the mask, which has their first axes, is true, else zero, by a select: infinity is dropped."""
    return jax.tree.map(lambda a: jnp.where(expand_dims_like(mask, a), a, jnp.zeros_like(a)), leaves)


def expand_dims_like(some: jax.Array, other: jax.Array) -> jax.Array:
    """An array of the first axes of another, to be broadcast along its other ones."""
    return some.reshape(*some.shape, *[1] * (other.ndim - some.ndim))


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums of `dtype` over time are kept: at least single precision."""
    return jnp.promote_types(dtype, jnp.float32)


def divide(a: Any, b: jax.Array) -> jax.Array:
    """a / b, 0 where b is 0: the mean of nothing."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def split_list(items: Sequence[Any], *sizes: int | None) -> list[list[Any]]:
    """Consecutive pieces of these sizes; None, as the last of them, is all the rest."""
    pieces, start = [], 0
    for size in sizes:
        end = len(items) if size is None else start + size
        pieces.append(list(items[start:end]))
        start = end
    return pieces
