"""The influence of the params on the state, M_t = ∂h_t/∂θ, without the numbers of it that are always zero.

    M_t = (∂h_t/∂h_{t−1}) M_{t−1} + ∂⁺h_t/∂θ

Which they are `layout` says: of each leaf of the state and each leaf of the params M is of `[B, free axes of the leaf
of the state, axes of the param]`. Here is how it is carried over a step, and what credit makes of it.

Both Jacobians are made of pullbacks of δ: ones along aligned axes, since their units have nothing to do with each
other, one after the other along free axes. So a step with a custom derivative has its own.

SnAp-1 (`diagonal`) takes of ∂h_t/∂h_{t−1} the entries between what its layout has: of a matrix, the diagonal.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.leaves import Leaves, add, vary, varying
from jax_bptt.engine.step.structure import Alignment, Units
from jax_bptt.engine.windows import vmap_leading
from jax_bptt.forward_mode.layout import Layout, free_axes, shapes_of
from jax_bptt.forward_mode.real_numbers import Step
from jax_bptt.forward_mode.recursion import Credit, pullback_of
from jax_bptt.model import PyTree

Influence = tuple[tuple[jax.Array | None, ...], ...]
"""M, by leaf of the state and leaf of the params; None where it is zero."""

MATRIX = 8
"""Units of free axes from which on a sum over them is a product of matrices, and not one of elements."""


def carry_over(
    layout: Layout,
    batch: tuple[int, ...],
    step: Step,
    params: Leaves,
    before: Leaves,
    x: PyTree,
    kept: tuple[Influence],
    credit: Credit,
) -> tuple[tuple[Influence], Leaves]:
    """M after a step, and what the credit of its losses makes of it."""
    (before_step,) = kept
    after = _advance(layout, batch, step, params, before, x, before_step)
    by_after = _contribution(layout, batch, after, credit.to_after)
    return (after,), add(by_after, _contribution(layout, batch, before_step, credit.to_before))


def _advance(
    layout: Layout, batch: tuple[int, ...], step: Step, params: Leaves, before: Leaves, x: PyTree, kept: Influence
) -> Influence:
    """M after a step."""
    immediate, recurrent = vmap_leading(_jacobians(layout, step), (None, 0, 0), batch)(params, before, x)
    axes, shapes = len(batch), shapes_of(layout, batch)

    def of(i: int, k: int) -> jax.Array | None:
        here, own, shape = layout.kept[i][k], layout.immediate[i][k], shapes[i][k]
        if here is None or shape is None:
            return None
        terms = [] if own is None else [_spread(immediate[i][k], own, here, layout.state[i].shape, axes)]
        for j, there in enumerate(row[k] for row in layout.kept):
            if there is not None and layout.recurrent[i][j] is not None:
                free, rows = free_axes(here), here if layout.diagonal else None
                entries = _entries(recurrent[i][free][j], axes, rows, free, there, layout.params[k].ndim)
                terms.append(_sum_free(entries, kept[j][k], axes, len(free), len(free_axes(there))))
        return functools.reduce(jnp.add, [term.astype(shape.dtype) for term in terms])

    places = range(len(layout.params))
    return tuple(tuple(of(i, k) for k in places) for i in range(len(layout.state)))


def _contribution(layout: Layout, batch: tuple[int, ...], kept: Influence, credit: Leaves) -> Leaves:
    """Σ_b creditᵀ M, of each leaf of the params; None where it is zero."""
    total: Leaves = [None] * len(layout.params)
    for i, bar in enumerate(credit):
        for k, there in enumerate(layout.kept[i]):
            if bar is None or there is None:
                continue
            entries = _entries(bar, len(batch), None, (), there, layout.params[k].ndim)
            made = _sum_free(entries, kept[i][k], len(batch), 0, len(free_axes(there)), over_batch=True)
            total[k] = add([total[k]], [made])[0]
    return total


# One example.


def _jacobians(layout: Layout, step: Step) -> Callable[[Leaves, Leaves, PyTree], tuple[Any, Any]]:
    """Of an example, ∂⁺h_t/∂θ as its own layout has it, and ∂h_t/∂h_{t−1}.

    This is of each leaf after the step, by which axes of it are free, for each leaf before the step; of SnAp-1 all of
    its axes are there.
    """

    def of_example(params: Leaves, before: Leaves, x: PyTree) -> tuple[Any, Any]:
        made, pull = pullback_of(step, params, before, x)
        zeros = [None if leaf is None else jnp.zeros_like(leaf) for leaf in made]

        def rows(i: int, free: tuple[int, ...]) -> tuple[Leaves, Leaves]:
            """The pullbacks of units of a leaf, one for each place along the axes that are free."""
            shape = layout.state[i].shape
            units = vary(_units(shape, free, layout.state[i].dtype), varying(zeros[i]))

            def pulled(of: jax.Array) -> tuple[Leaves, Leaves]:
                return pull([of if j == i else zero for j, zero in enumerate(zeros)])

            bars = jax.vmap(pulled)(units) if free else pulled(units[0])
            sizes = tuple(shape[axis] for axis in free)
            return jax.tree.map(lambda a: a.reshape(sizes + a.shape[bool(free) :]), bars)

        immediate, recurrent = [], []
        for i, shape in enumerate(layout.state):
            frees = {free_axes(a) for a in (*layout.kept[i], *layout.immediate[i]) if a is not None}
            every = tuple(range(len(shape.shape)))
            of = {free: rows(i, free) for free in sorted(frees | ({every} if layout.diagonal and frees else set()))}
            immediate.append([None if a is None else of[free_axes(a)][0][k] for k, a in enumerate(layout.immediate[i])])
            recurrent.append({free: of[every if layout.diagonal else free][1] for free in frees})
        return immediate, recurrent

    return of_example


def _units(shape: tuple[int, ...], free: tuple[int, ...], dtype: Any) -> jax.Array:
    """For each place along the free axes of a shape, one there, along all other axes, and zero elsewhere."""
    sizes = [size if axis in free else 1 for axis, size in enumerate(shape)]
    number = math.prod(sizes)
    return jnp.broadcast_to(jnp.eye(number, dtype=dtype).reshape(number, *sizes), (number, *shape))


# Free and aligned axes.


def _spread(made: jax.Array, own: Alignment, wanted: Alignment, shape: tuple[int, ...], axes: int) -> jax.Array:
    """What has the free axes of its own layout, with those wanted: zero but at its own units along new ones."""
    free = free_axes(wanted)
    new = [axis for axis in free if own[axis] is not None]
    made = jnp.expand_dims(made, [axes + free.index(axis) for axis in new])
    for axis in new:
        units = own[axis]
        assert units is not None
        place = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in free] + [1] * units.ndim)
        here = jnp.asarray(place) == jnp.asarray(units.reshape((1,) * len(free) + units.shape))
        made = jnp.where(here.reshape((1,) * axes + here.shape), made, jnp.zeros_like(made))
    return made


def _entries(
    jacobian: jax.Array, axes: int, rows: Alignment | None, free: tuple[int, ...], columns: Alignment, ndim: int
) -> jax.Array:
    """The entries of a Jacobian that stand before M: `[B, free axes after, free axes before, axes of the param]`.

    Args:
        jacobian: `[B, rows, columns]`; of the leaf after the step, the free axes, or with `rows` all of them, then all
            axes of the leaf before it.
        axes: how many of its axes are the batch.
        rows, columns: the layout of M of the leaf after the step, if its aligned axes are there, and before it.
        free: the free axes of the leaf after the step.
        ndim: how many axes the param has.
    """
    n_rows = len(free) if rows is None else len(rows)
    columns_free = free_axes(columns)
    aligned_rows = [] if rows is None else [(axis, units) for axis, units in enumerate(rows) if units is not None]
    aligned = [(axis, units) for axis, units in enumerate(columns) if units is not None]
    rows_free = range(len(free)) if rows is None else free
    order = [
        *range(axes),
        *(axes + axis for axis in rows_free),
        *(axes + n_rows + axis for axis in columns_free),
        *(axes + axis for axis, _ in aligned_rows),
        *(axes + n_rows + axis for axis, _ in aligned),
    ]
    turned = jacobian.transpose(order)
    places = [units for _, units in (*aligned_rows, *aligned)]
    leading = turned.shape[: turned.ndim - len(places)]
    if not places:
        return turned.reshape(leading + (1,) * ndim)
    if _in_order(places, turned.shape[len(leading) :]):
        return turned.reshape(leading + np.broadcast_shapes(*(units.shape for units in places)))
    entries = turned[(..., *(jnp.asarray(np.maximum(units, 0)) for units in places))]
    nowhere = functools.reduce(np.logical_or, [units < 0 for _, units in aligned_rows], np.zeros((1,) * ndim, bool))
    nowhere = nowhere.reshape((1,) * len(leading) + nowhere.shape)
    return jnp.where(nowhere, jnp.zeros_like(entries), entries) if nowhere.any() else entries


def _in_order(places: list[Units], sizes: tuple[int, ...]) -> bool:
    """Whether units are the places along axes of their own, one after the other, so that nothing is to be gathered."""
    along = [[axis for axis, n in enumerate(units.shape) if n > 1] for units in places]
    if any(len(of) != 1 for of in along) or [*itertools.chain(*along)] != sorted({*itertools.chain(*along)}):
        return False
    return all(np.array_equal(units.reshape(-1), np.arange(n)) for units, n in zip(places, sizes, strict=True))


def _sum_free(entries: jax.Array, kept: Any, axes: int, rows: int, columns: int, over_batch: bool = False) -> jax.Array:
    """Σ over the free axes of the leaf before the step, and over the batch if asked, of entries times M.

    Args:
        axes, rows, columns: how many axes are the batch's, free ones of the leaf after the step, and before it.
    """
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    of_batch, of_rows, of_columns = ("".join(itertools.islice(letters, n)) for n in (axes, rows, columns))
    ndim = entries.ndim - axes - rows - columns
    of_param = "".join(itertools.islice(letters, ndim))
    sizes = entries.shape[axes + rows : axes + rows + columns]
    entries = entries.astype(kept.dtype)
    if 0 < math.prod(sizes) < MATRIX:
        first, last = entries.shape[: axes + rows], entries.shape[axes + rows + columns :]
        entries = entries.reshape(*first, math.prod(sizes), *last)
        kept = kept.reshape(*first[:axes], *[1] * rows, math.prod(sizes), *kept.shape[axes + columns :])
        at = (slice(None),) * (axes + rows)
        made = functools.reduce(jnp.add, [entries[*at, i] * kept[*at, i] for i in range(math.prod(sizes))])
        return made.sum(range(axes)) if over_batch else made
    there = [size > 1 for size in entries.shape[axes + rows + columns :]]
    squeezed = entries.squeeze([axes + rows + columns + i for i, is_there in enumerate(there) if not is_there])
    of_entries = of_batch + of_rows + of_columns + "".join(itertools.compress(of_param, there))
    made = ("" if over_batch else of_batch) + of_rows + of_param
    return jnp.einsum(f"{of_entries},{of_batch + of_columns + of_param}->{made}", squeezed, kept)
