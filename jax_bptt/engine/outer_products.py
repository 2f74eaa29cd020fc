"""Sums over rows, Σ a bᵀ: the gradient of a weight is one, a single product of what all steps of a window make.

A row has two axes, time and batch, or three, where blocks of time stand side by side. `with_outer_products` evaluates a
function with its sums over rows written as the platform computes them best; `to_wide` and `from_wide` turn the matrices
in which such sums are collected.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from jax_bptt.engine.leaves import Leaves, accumulators
from jax_bptt.engine.plan import narrow_first
from jax_bptt.engine.step.equations import Equation, shape_of
from jax_bptt.engine.step.graph import interpret, trace
from jax_bptt.engine.step.products import contracted_axes, product
from jax_bptt.model import PyTree


def with_outer_products(function: Callable, *arguments: PyTree) -> PyTree:
    """`function(*arguments)`, its sums over rows by `_sum_over_rows`."""
    graph = trace(function, *arguments)

    def replace(eqn: Equation, operands: list[Any]) -> list[jax.Array] | None:
        return [_sum_over_rows(eqn, operands[0], operands[1])] if _is_sum_over_rows(eqn) else None

    known = dict(zip(graph.inputs, jax.tree.leaves(arguments), strict=True))
    return jax.tree.unflatten(graph.structure, interpret(graph, known, graph.outputs, replace, effects=True))


def _is_sum_over_rows(eqn: Equation) -> bool:
    """Whether a product contracts all axes of both operands but their last ones, and these are several."""
    axes = contracted_axes(eqn)
    if axes is None or axes[0] != axes[1] or len(axes[0]) < 2:
        return False
    return all(
        sorted(of) == list(range(len(shape_of(atom).shape) - 1)) for of, atom in zip(axes, eqn.invars, strict=True)
    )


def _sum_over_rows(eqn: Equation, left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ a bᵀ, by the product with the narrower operand first.

    On CPU one axis is made of the rows' axes: of several, XLA would transpose an operand entry by entry. Elsewhere they
    stay as they are: were they one, a batch that is divided among devices could not stay so, and each of them would get
    all rows.
    """
    swapped = not narrow_first(left.shape[-1], right.shape[-1])
    narrow, wide = (right, left) if swapped else (left, right)
    axes, rows = tuple(range(left.ndim - 1)), math.prod(left.shape[:-1])

    def of_one_axis(*operands: jax.Array) -> jax.Array:
        first, second = (a.reshape(rows, a.shape[-1]) for a in operands)
        return product(eqn, first, second, axes=((0,), (0,)), swapped=swapped)

    def of_their_axes(*operands: jax.Array) -> jax.Array:
        return product(eqn, *operands, axes=(axes, axes), swapped=swapped)

    made = jax.lax.platform_dependent(narrow, wide, cpu=of_one_axis, default=of_their_axes)
    return made.T if swapped else made


def wide_zeros(weights: Leaves) -> Leaves:
    """Where gradients of the weights are summed up: zeros in at least single precision, wide."""
    return to_wide(accumulators(weights))


def to_wide(weights: Leaves) -> Leaves:
    """Matrices with their longer side across, as sums over rows make them: transposed where they are taller."""
    return [w.T if w is not None and w.ndim == 2 and not narrow_first(*w.shape) else w for w in weights]


def from_wide(sums: Leaves, weights: Leaves) -> Leaves:
    """Wide matrices in the shapes of the weights."""
    return [s if s is None or s.shape == w.shape else s.T for s, w in zip(sums, weights, strict=True)]
