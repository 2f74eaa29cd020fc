"""Lists of leaves, in the order of `jax.tree.leaves`, with None where a leaf has no derivative or none is asked for.

Params, state, inputs, δ and all cotangents are such lists inside the engine. `differentiable` makes one with None in
it, `combine` fills it up again, and the arithmetic of cotangents takes None for zero.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    return jax.tree.map(lambda a: full((*shape, *a.shape), a.dtype, varying(a)), leaves)


# Inside a `shard_map`, types tell along which axes of the mesh an array varies. States, inputs and all that is made of
# them vary along all axes along which any argument does; params do as they do, and their gradients are sums.


def varying(leaf: Any) -> frozenset[Any]:
    """The axes of the mesh along which an array, or what has its type, varies."""
    kind = jax.typeof(leaf) if isinstance(leaf, jax.Array | np.ndarray) else leaf
    if hasattr(kind, "manual_axis_type"):
        return frozenset(getattr(kind.manual_axis_type, "varying", None) or ())
    return frozenset(getattr(kind, "vma", None) or ())  # before JAX 0.9


def axes_of(tree: Any) -> frozenset[Any]:
    """The axes of the mesh along which any leaf of a tree varies."""
    return frozenset().union(*map(varying, jax.tree.leaves(tree)))


def vary(leaf: Any, axes: frozenset[Any]) -> Any:
    """The same, as varying along these axes, too."""
    more = tuple(sorted(axes - varying(leaf)))
    if not more:
        return leaf
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(leaf, more, to="varying")
    before_jax_0_9 = "pvary"
    return getattr(jax.lax, before_jax_0_9)(leaf, more)


def sum_like(bar: Any, leaf: Any) -> Any:
    """The cotangent of what `vary` made of a leaf as that of the leaf: the sum along the axes along which it is one."""
    axes = tuple(sorted(varying(bar) - varying(leaf)))
    return jax.lax.psum(bar, axes) if axes else bar


def full(shape: tuple[int, ...], dtype: Any, axes: frozenset[Any] = frozenset()) -> jax.Array:
    """Zeros, of keys too, that vary along these axes."""
    return vary(jax.lax.full(shape, 0, dtype), axes)


def shape_like(leaf: Any, axes: int = 0) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf without its first axes; it varies as the leaf does."""
    if not varying(leaf):
        return jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype)
    return jax.eval_shape(lambda: full(leaf.shape[axes:], leaf.dtype, varying(leaf)))


def where(mask: jax.Array, leaves: Leaves) -> Leaves:
    """The leaves where the mask, which has their first axes, is true, else zero, by a select: infinity is dropped."""
    return jax.tree.map(lambda a: jnp.where(expand_dims_like(mask, a), a, jnp.zeros_like(a)), leaves)


def scaled(scale: jax.Array, leaves: Leaves) -> Leaves:
    """The leaves times the scale, which has their first axes; zero where it is zero, by a select: infinity is dropped.

    Products are made in the precision of the scale, if that is the higher one.
    """

    def times(a: jax.Array) -> jax.Array:
        wide = jnp.promote_types(scale.dtype, a.dtype)
        return (expand_dims_like(scale, a).astype(wide) * a.astype(wide)).astype(a.dtype)

    return where(scale != 0, jax.tree.map(times, leaves))


@jax.custom_jvp
def handing_back(scale: jax.Array, leaves: Leaves) -> Leaves:
    """The leaves, of which `scaled` credit is handed back."""
    return leaves


@handing_back.defjvp
def _push_handing_back(primals: tuple[jax.Array, Leaves], tangents: tuple[Any, Leaves]) -> tuple[Leaves, Leaves]:
    return primals[1], scaled(primals[0], tangents[1])


def expand_dims_like(some: jax.Array, other: jax.Array) -> jax.Array:
    """An array of the first axes of another, to be broadcast along its other ones."""
    return some.reshape(*some.shape, *[1] * (other.ndim - some.ndim))


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums of `dtype` over time are kept: at least single precision."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def accumulators(leaves: Leaves) -> Leaves:
    """Zeros in the shapes of leaves, in which cotangents of theirs are summed over time."""
    return jax.tree.map(lambda a: full(a.shape, accumulator(a.dtype), varying(a)), leaves)


def divide(a: Any, b: jax.Array) -> jax.Array:
    """a / b, 0 where b is 0: the mean of nothing."""
    nothing = b == 0
    return jnp.where(nothing, jnp.zeros_like(b), a / jnp.where(nothing, jnp.ones_like(b), b))


SYMBOLIC = 32
"""What a size counts as that is not known while tracing, `jax.export`'s symbolic ones, where costs are weighed."""


def concrete(size: Any) -> int:
    """The size, or what it counts as."""
    return size if isinstance(size, int) else SYMBOLIC


def nbytes(leaf: Any) -> int:
    """The size of a leaf, or of what has its shape and dtype; of None, 0."""
    return 0 if leaf is None else concrete(leaf.size) * leaf.dtype.itemsize


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
