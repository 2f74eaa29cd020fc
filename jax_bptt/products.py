"""Sums over rows, Σ a bᵀ: the gradient of a weight is one, a single product of what all steps of a window make.

A row has two axes, time and batch. `with_sums` evaluates a function with its sums over rows written as the platform
computes them best.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from jax_bptt.jaxprs import evaluate, needed, product, shape_of, trace


def with_sums(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, its sums over rows by `_sum_over_rows`."""
    closed, shapes = trace(function, *arguments)
    jaxpr, leaves = closed.jaxpr, jax.tree.leaves(arguments)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *leaves], strict=True))
    for eqn in needed(jaxpr, jaxpr.outvars, values.__contains__, effects=True)[0]:
        if _is_sum_over_rows(eqn):
            values[eqn.outvars[0]] = _sum_over_rows(eqn, *(values[v] for v in eqn.invars))
        else:
            values |= evaluate(jaxpr, eqn, values)
    out = [values[v] if isinstance(v, Var) else jnp.asarray(v.val, jnp.result_type(v.aval)) for v in jaxpr.outvars]
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def _is_sum_over_rows(eqn: JaxprEqn) -> bool:
    """Whether a product contracts all axes of both operands but their last ones, and these are several."""
    if eqn.primitive.name != "dot_general":
        return False
    (left, right), batched = eqn.params["dimension_numbers"]
    all_but_last = [list(range(len(shape_of(v).shape) - 1)) for v in eqn.invars]
    same = tuple(left) == tuple(right) and batched == ((), ())
    return same and len(left) > 1 and [sorted(left), sorted(right)] == all_but_last


def _sum_over_rows(eqn: JaxprEqn, left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ a bᵀ, by the product with the narrower operand first.

    On CPU one axis is made of the rows' axes: of several, XLA would transpose an operand entry by entry. Elsewhere they
    stay as they are: were they one, a batch that is divided among devices could not stay so, and each of them would get
    all rows.

    (The product of [R, M]ᵀ and [R, N], of R rows, took with M ≤ N 0.4 to 0.96 of the time of its transpose, on two CPU
    cores, R from 64 to 1024, M from 32 to 512, N from two to sixteen times M.)
    """
    swap = left.shape[-1] > right.shape[-1]

    def of_one_axis(left: jax.Array, right: jax.Array) -> jax.Array:
        left, right = (a.reshape(-1, a.shape[-1]) for a in (left, right))
        return product(eqn, left, right, axes=((0,), (0,)), swap=swap)

    def of_their_axes(left: jax.Array, right: jax.Array) -> jax.Array:
        return product(eqn, left, right, swap=swap)

    made = jax.lax.platform_dependent(left, right, cpu=of_one_axis, default=of_their_axes)
    return made.T if swap else made
