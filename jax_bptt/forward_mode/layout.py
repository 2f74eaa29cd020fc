"""Which numbers the influence M_t = ∂h_t/∂θ has: those that can be other than zero.

For each leaf of the state and each leaf of the params, M has the axes of both. Where an element of a param has to do
with one unit alone along an axis of the state, that axis is left out (`engine/step/structure` calls it aligned): of
a Jacobian that is elementwise, all of them are, and M has the size of the params. The axes that are left, the free
ones, stand in front: `[B, free axes of the leaf of the state, axes of the param]`.

It follows from what one step does, ∂⁺h_t/∂θ, and from what further steps make of it, ∂h_t/∂h_{t−1}; SnAp-1 (`diagonal`)
leaves out what ∂⁺h_t/∂θ leaves out, whatever ∂h_t/∂h_{t−1} says.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import Leaves, accumulator, differentiable, nbytes
from jax_bptt.engine.step import graph
from jax_bptt.engine.step.structure import Alignment, alignments, compose, is_equal, join
from jax_bptt.forward_mode.real_numbers import in_real_numbers, real_shapes
from jax_bptt.forward_mode.recursion import pullback_of
from jax_bptt.model import PyTree

Alignments: TypeAlias = list[list[Alignment | None]]
"""By leaf of the state, then by leaf of something; None where that has nothing to do with it."""


class Layout(NamedTuple):
    """Which numbers M has, of one example, in real coordinates."""

    kept: Alignments  # of M
    immediate: Alignments  # of ∂⁺h_t/∂θ
    recurrent: Alignments  # of ∂h_t/∂h_{t−1}, by leaf after, then by leaf before the step
    state: Leaves  # shapes of the leaves of the state
    params: Leaves
    diagonal: bool


def read_layout(call: Call, *, diagonal: bool) -> Layout:
    """The layout of M of the step of a call.

    Args:
        diagonal: whether it is that of SnAp-1.
    """
    params, state, x = real_shapes(call)
    step = in_real_numbers(call)

    def pulled(params: Leaves, before: Leaves, x: PyTree, delta: Leaves) -> tuple[Leaves, Leaves]:
        return pullback_of(step, params, before, x)[1](delta)

    traced = graph.trace(pulled, params, state, x, differentiable(state))
    moving = [i for i, leaf in enumerate(differentiable(state)) if leaf is not None]
    immediate: Alignments = [[None] * len(params) for _ in state]
    recurrent: Alignments = [[None] * len(state) for _ in state]
    for i, source in zip(moving, traced.inputs[len(traced.inputs) - len(moving) :], strict=True):
        found = alignments(traced, source, traced.outputs)
        immediate[i], of_state = found[: len(params)], found[len(params) :]
        for j, alignment in zip(moving, of_state, strict=True):
            recurrent[i][j] = alignment
    kept = immediate if diagonal else _closed(immediate, recurrent, [p.ndim for p in params])
    return Layout(kept, immediate, recurrent, state, params, diagonal)


def _closed(immediate: Alignments, recurrent: Alignments, ndims: Sequence[int]) -> Alignments:
    """That of M, which has what ∂⁺h_t/∂θ has, and what steps make of what it has."""
    kept = immediate
    while True:
        known = kept
        kept = []
        for i, row in enumerate(immediate):
            kept.append([])
            for k, alignment in enumerate(row):
                for j, between in enumerate(recurrent[i]):
                    alignment = join(alignment, compose(between, known[j][k], ndims[k]))
                kept[-1].append(join(known[i][k], alignment))
        if all(is_equal(a, b) for a, b in zip(itertools.chain(*kept), itertools.chain(*known), strict=True)):
            return kept


def shapes_of(layout: Layout, batch: tuple[int, ...]) -> tuple[tuple[jax.ShapeDtypeStruct | None, ...], ...]:
    """The shapes of M, of a batch."""

    def of(alignment: Alignment | None, leaf: Any, param: Any) -> jax.ShapeDtypeStruct | None:
        if alignment is None:
            return None
        dtype = accumulator(jnp.result_type(leaf.dtype, param.dtype))
        return jax.ShapeDtypeStruct((*batch, *(leaf.shape[axis] for axis in free_axes(alignment)), *param.shape), dtype)

    rows = zip(layout.kept, layout.state, strict=True)
    return tuple(tuple(of(a, leaf, p) for a, p in zip(row, layout.params, strict=True)) for row, leaf in rows)


def bytes_of(layout: Layout, batch: tuple[int, ...]) -> int:
    """The size of M, of a batch."""
    return sum(map(nbytes, jax.tree.leaves(shapes_of(layout, batch))))


def free_axes(alignment: Alignment) -> tuple[int, ...]:
    """Those that M has, of a leaf of the state."""
    return tuple(axis for axis, units in enumerate(alignment) if units is None)
