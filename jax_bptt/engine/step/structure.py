"""The structure of a Jacobian, as it is read off the graph of a pullback: which entries of it can be other than zero.

    (∂after/∂before)ᵀ δ, (∂after/∂θ)ᵀ δ        linear in δ, whose graph is walked from δ on

Of each axis of δ, an element of a cotangent may depend on one unit alone: the axis is *aligned*, and `units` says with
which. h_t = a ⊙ h_{t−1} + W x_t has both axes of a Jacobian aligned: δ_{t−1}[i] depends on δ_t[i] alone, the cotangent
of W[i, j] on δ_t[i]. Then the Jacobian has as many numbers that count as what it is with respect to. An axis that is
not aligned is *free*: an element may depend on all of it, as it does behind a product.

What is not known of an operation makes all axes free, which is never wrong.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jax_bptt.engine.step.equations import Atom, Equation, Var, shape_of, variables
from jax_bptt.engine.step.graph import Graph
from jax_bptt.engine.step.primitives import is_elementwise

Units: TypeAlias = np.ndarray
"""Which unit along an axis of δ each element depends on, −1 for none; its axes are the element's, or of size 1."""

Alignment: TypeAlias = tuple[Units | None, ...]
"""Per axis of δ the units that the elements of something depend on, None where it is free."""


def alignments(graph: Graph, source: Var, outputs: Sequence[Atom]) -> list[Alignment | None]:
    """How each output of a graph depends on a source, one of its inputs; None where it does not.

    Of a source that is real; what is done to it may be complex.
    """
    shape = shape_of(source).shape
    here = tuple(_along(axis, np.arange(size), len(shape)) for axis, size in enumerate(shape))
    found: dict[Var, Alignment] = {source: here}
    for eqn in graph.equations:
        if any(v in found for v in variables(eqn.invars)):
            found |= dict(zip(eqn.outvars, _of_results(eqn, found, len(shape)), strict=True))
    ends = [found.get(atom) if isinstance(atom, Var) else None for atom in outputs]
    return [end and tuple(units if units is None else _simplest(units) for units in end) for end in ends]


def is_identity(alignment: Alignment, shape: tuple[int, ...]) -> bool:
    """Whether each element of an array of that shape depends on its own place in δ alone, or on nothing."""
    return len(alignment) == len(shape) and all(is_own(alignment, axis, shape) for axis in range(len(shape)))


def is_own(alignment: Alignment, axis: int, shape: tuple[int, ...]) -> bool:
    """The same along one axis."""
    units = alignment[axis]
    return units is not None and bool(((units == _along(axis, np.arange(shape[axis]), len(shape))) | (units < 0)).all())


def is_equal(some: Alignment | None, more: Alignment | None) -> bool:
    """Whether both say the same."""
    if some is None or more is None:
        return some is more

    def of_axis(a: Units | None, b: Units | None) -> bool:
        return a is b if a is None or b is None else np.array_equal(a, b)

    return all(itertools.starmap(of_axis, zip(some, more, strict=True)))


def join(some: Alignment | None, more: Alignment | None) -> Alignment | None:
    """That of a sum: an axis stays aligned where both say the same, or one of them nothing."""
    if some is None or more is None:
        return more if some is None else some

    def of_axis(a: Units | None, b: Units | None) -> Units | None:
        if a is None or b is None or ((a != b) & (a >= 0) & (b >= 0)).any():
            return None
        return _compressed(np.maximum(a, b))

    return tuple(map(of_axis, some, more))


def compose(outer: Alignment | None, inner: Alignment | None, ndim: int) -> Alignment | None:
    """How something depends on δ through a cotangent between them.

    Args:
        outer: how the cotangent between them depends on δ.
        inner: how the thing, which has so many axes, depends on the cotangent between them.
    """
    if outer is None or inner is None:
        return None

    def of_axis(units: Units | None) -> Units | None:
        if units is None or not units.size:
            return None
        needed = [axis for axis, size in enumerate(units.shape) if size > 1]
        of_needed = [inner[axis] for axis in needed]
        if any(of is None for of in of_needed):
            return None
        if not needed:
            return units.reshape((1,) * ndim)
        index = tuple(of_needed[needed.index(axis)] if axis in needed else 0 for axis in range(units.ndim))
        made, there = units[index], functools.reduce(np.logical_and, [of >= 0 for of in of_needed if of is not None])
        return _compressed(np.where(there, made, -1))

    return tuple(map(of_axis, outer))


def _along(axis: int, values: np.ndarray, ndim: int) -> Units:
    """Values along one axis of so many."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _compressed(units: Units) -> Units:
    """The same, of size 1 along axes along which it is constant."""
    for axis, size in enumerate(units.shape):
        first = units.take([0], axis) if size > 1 else units
        if size > 1 and (units == first).all():
            units = first
    return units


def _simplest(units: Units) -> Units:
    """The same, of size 1 along axes along which it is constant but where an element depends on nothing."""
    for axis, size in enumerate(units.shape):
        most = units.max(axis, keepdims=True) if size > 1 else units
        if size > 1 and ((units == most) | (units < 0)).all():
            units = most
    return units


def _of_results(eqn: Equation, found: Mapping[Var, Alignment], axes: int) -> Iterator[Alignment]:
    """How the results of an equation depend on a source with so many axes."""
    moving = [i for i, atom in enumerate(eqn.invars) if isinstance(atom, Var) and atom in found]
    shapes = [shape_of(atom).shape for atom in eqn.invars]
    for place, variable in enumerate(eqn.outvars):
        of_axes: list[Units | None] = []
        for axis in range(axes):
            units = [found[v][axis] for i, v in enumerate(eqn.invars) if i in moving and isinstance(v, Var)]
            known = all(of is not None for of in units)
            of_axes.append(_moved(eqn, moving, units, shapes, shape_of(variable).shape, place) if known else None)
        yield tuple(of_axes)


def _moved(
    eqn: Equation, moving: list[int], units: list[Any], shapes: list[tuple[int, ...]], made: tuple[int, ...], place: int
) -> Units | None:
    """The units that a result depends on along one axis of the source, from those of the operands that move."""
    if is_elementwise(eqn) or eqn.primitive.name == "copy":
        wide = [of.reshape(of.shape or (1,) * len(made)) for of in units]
        both = functools.reduce(join, [(of,) for of in wide])
        return None if both is None else both[0]
    move = _MOVES.get(eqn.primitive.name)
    if move is None or 0 in made:
        return None
    try:
        return move(eqn, moving, units, shapes, made, place)
    except KeyError:  # of params that we do not know
        return None


# Of what moves elements: of an equation, the operands that move and their units, all shapes, and which result.


def _broadcast(eqn: Equation, moving: Any, units: Any, shapes: Any, made: tuple[int, ...], place: int) -> Units | None:
    if moving != [0]:
        return None
    into = eqn.params["broadcast_dimensions"]
    shape = [1] * len(made)
    for axis, size in zip(into, units[0].shape, strict=True):
        shape[axis] = size
    return units[0].reshape(shape)


def _transpose(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    return units[0].transpose(eqn.params["permutation"])


def _reshape(eqn: Equation, moving: Any, units: Any, shapes: Any, made: tuple[int, ...], place: int) -> Units | None:
    if eqn.primitive.name == "reshape" and (moving != [0] or eqn.params.get("dimensions") is not None):
        return None
    return _compressed(np.broadcast_to(units[0], shapes[0]).reshape(made))


def _reduce(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    axes = tuple(eqn.params["axes"])
    return units[0].squeeze(axes) if all(units[0].shape[axis] == 1 for axis in axes) else None


def _cumulative(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    return units[0] if units[0].shape[eqn.params["axis"]] == 1 else None


def _reverse(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    return np.flip(units[0], tuple(axis for axis in eqn.params["dimensions"] if units[0].shape[axis] > 1))


def _slice(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    starts, limits, strides = (eqn.params[name] for name in ("start_indices", "limit_indices", "strides"))
    strides = strides or (1,) * len(starts)
    return units[0][
        tuple(
            slice(None) if size == 1 else slice(*of)
            for size, *of in zip(units[0].shape, starts, limits, strides, strict=True)
        )
    ]


def _split(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    if units[0].shape[axis] == 1:
        return units[0]
    start = sum(sizes[:place])
    return units[0].take(np.arange(start, start + sizes[place]), axis)


def _stack(eqn: Equation, moving: list[int], units: list[Units], shapes: Any, made: Any, place: int) -> Units:
    axis, given = eqn.params["axis"], dict(zip(moving, units, strict=True))
    others = np.broadcast_shapes(*(of.shape for of in units))
    parts = [np.broadcast_to(given[i], others) if i in given else np.full(others, -1) for i in range(len(shapes))]
    return _compressed(np.stack(parts, axis))


def _unstack(eqn: Equation, moving: Any, units: Any, shapes: Any, made: Any, place: int) -> Units | None:
    axis = eqn.params["axis"]
    return units[0].take(0 if units[0].shape[axis] == 1 else place, axis)


def _pad(eqn: Equation, moving: Any, units: Any, shapes: Any, made: tuple[int, ...], place: int) -> Units | None:
    config = eqn.params["padding_config"]
    if moving != [0] or any(low < 0 or high < 0 for low, high, _ in config):
        return None
    padded = np.full([size if any(of) else n for size, n, of in zip(made, units[0].shape, config, strict=True)], -1)
    inside = tuple(
        slice(low, size - high, inner + 1) if any((low, high, inner)) else slice(None)
        for size, (low, high, inner) in zip(made, config, strict=True)
    )
    padded[inside] = units[0]
    return padded


def _concatenate(eqn: Equation, moving: list[int], units: list[Units], shapes: Any, made: Any, place: int) -> Units:
    axis = eqn.params["dimension"]
    others = np.broadcast_shapes(*([1 if i == axis else n for i, n in enumerate(of.shape)] for of in units))
    given = dict(zip(moving, units, strict=True))
    parts = []
    for i, shape in enumerate(shapes):
        wanted = [shape[axis] if j == axis else n for j, n in enumerate(others)]
        parts.append(np.broadcast_to(given[i], wanted) if i in given else np.full(wanted, -1))
    return np.concatenate(parts, axis)


def _product(eqn: Equation, moving: list[int], units: list[Units], shapes: Any, made: Any, place: int) -> Units | None:
    """Of one operand that moves, whose contracted axes are not aligned; its others stand behind those of the left."""
    if len(moving) != 1:
        return None
    (contracted, batched), (which,) = eqn.params["dimension_numbers"], moving
    of = units[0]
    if any(of.shape[axis] > 1 for axis in contracted[which]):
        return None
    free = [axis for axis in range(of.ndim) if axis not in (*contracted[which], *batched[which])]
    others = len(shapes[1 - which]) - len(contracted[which]) - len(batched[which])
    kept = of.transpose(*batched[which], *free, *contracted[which])
    leading, own = [of.shape[axis] for axis in batched[which]], [of.shape[axis] for axis in free]
    shape = [*leading, *own, *[1] * others] if which == 0 else [*leading, *[1] * others, *own]
    return kept.reshape(shape)


_MOVES: dict[str, Callable[..., Units | None]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "pad": _pad,
    "concatenate": _concatenate,
    "dot_general": _product,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
}
