"""The losses of a call as they count, and their cotangents: where the credit comes from."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.engine.call import Call, arrays_of
from jax_bptt.engine.leaves import (
    Leaves,
    accumulator,
    axes_of,
    combine,
    differentiable,
    divide,
    expand_dims_like,
    full,
    is_key,
    only,
    vary,
    where,
)
from jax_bptt.engine.schedule import Schedule
from jax_bptt.engine.windows import vmap_leading
from jax_bptt.model import Loss, PyTree, Reduction

Pull = Callable[[PyTree, PyTree, jax.Array | None, tuple[int, ...]], tuple[jax.Array, Leaves]]
"""`(outputs, targets, mask, axes) -> (losses, cotangents of the leaves of the outputs)`, of rows of these axes."""


class Objective(NamedTuple):
    """Where the credit comes from."""

    pull: Pull
    targets: PyTree  # [T, B, …]
    mask: jax.Array | None  # [T, B]
    zero: jax.Array  # a loss of zero, in the dtype in which they are summed
    reads: tuple[bool, ...]  # per leaf of the outputs: whether anything depends on it
    masked: bool = False  # whether what is made of steps that the mask drops is to be selected away


def objective_of(call: Call, reduction: Reduction, schedule: Schedule, *, derive: bool = True) -> Objective:
    """The losses of a call, after the burn-in, as they count.

    Args:
        derive: whether cotangents are wanted.
    """
    assert call.loss is not None
    assert call.reads is not None
    counts, dtype = schedule.counts, accumulator(call.loss_dtype)
    targets, mask = jax.tree.map(lambda a: a[schedule.burn_in :], (call.targets, call.mask))
    counted, dropped = None if mask is None else mask.astype(dtype), call.mask is not None
    if counts is not None:
        there = jnp.ones((schedule.steps, *call.batch), call.loss_dtype) if mask is None else mask
        (there,) = where(jnp.asarray(counts > 0), [there])
        counted = there.astype(dtype) * expand_dims_like(jnp.asarray(counts, dtype), there)
        if not counts.all():
            mask = there
            dropped |= schedule.grid is None or schedule.grid.losses != "newest"  # which reads no step without a loss
        if schedule.grid is None:  # each loss as often as it counts; windows that share one count it by themselves
            mask = counted
    data = axes_of(arrays_of(call)[0] | {"params": None})
    if reduction == "sum":
        scale = jnp.ones((), dtype)
    elif mask is None:
        number = (schedule.steps if counts is None else int(counts.sum())) * math.prod(call.batch)
        devices = jax.lax.psum(1, tuple(sorted(data))) if data else 1  # a constant, for which nothing is sent
        scale = 1 / jnp.asarray(number * devices).astype(dtype)  # as an array, since it may be symbolic
    else:
        assert counted is not None
        weight = counted.sum()
        if data:  # divided among devices: the mean is over the examples of all
            weight = jax.lax.psum(vary(weight, data), tuple(sorted(data)))
        scale = divide(jnp.ones((), dtype), weight)
    zero = full((), dtype, data | axes_of(call.params))
    return Objective(_pull_loss(call.loss, scale, call.reads, derive), targets, mask, zero, call.reads, dropped)


def _pull_loss(loss: Loss, scale: jax.Array, reads: tuple[bool, ...], derive: bool) -> Pull:
    """The losses scale · mask · loss(output, target) of all rows, and their cotangents."""

    def pull(
        outputs: PyTree, targets: PyTree, mask: jax.Array | None, axes: tuple[int, ...]
    ) -> tuple[jax.Array, Leaves]:
        leaves, structure = jax.tree.flatten(outputs)

        def losses(some: Leaves) -> tuple[jax.Array, jax.Array]:
            outputs = jax.tree.unflatten(structure, combine(some, leaves))
            of_row, rows = (loss, ()) if mask is None else (masked(loss), ((mask != 0).astype(mask.dtype),))
            values = vmap_leading(of_row, 0, axes)(outputs, targets, *rows).astype(scale.dtype)
            values = scale * (values if mask is None else mask.astype(scale.dtype) * values)
            return values.sum(), values

        some = only(reads, differentiable(leaves))
        if not derive:
            return losses(some)[1], []
        (_, values), cotangents = jax.value_and_grad(losses, has_aux=True)(some)
        return values, cotangents

    return pull


def masked(loss: Loss) -> Callable[[PyTree, PyTree, jax.Array], jax.Array]:
    """`loss` times a weight, as `(output, target, weight) -> scalar`.

    Where the weight is zero, loss and gradient are zero whatever output and target hold, NaN included: the cotangent
    is cut on its way out of the loss, where 0 · NaN would get through, and on its way into the output.
    """

    def weighted(output: PyTree, target: PyTree, weight: jax.Array) -> jax.Array:
        counts = weight != 0
        output = jax.tree.map(lambda y: jnp.where(counts, y, jax.lax.stop_gradient(y)), output)
        value = loss(output, target)
        return jnp.where(counts, jnp.asarray(weight, value.dtype) * value, jnp.zeros_like(value))

    return weighted


def instead_of_masked(mask: jax.Array, rows: PyTree) -> PyTree:
    """The rows, and the first one that is not masked, if there is one, in the place of those that are.

    It is found by sums, since to index a batch that is divided among devices would gather all of it.
    """
    counts, axes = mask != 0, tuple(range(mask.ndim))
    number = jnp.arange(mask.size).reshape(mask.shape)
    first = number == jnp.where(counts, number, mask.size).min()

    def replace(a: jax.Array) -> jax.Array:
        if is_key(a):
            return a
        alone = jnp.where(expand_dims_like(first, a), a, jnp.zeros_like(a))
        one = alone.any(axes) if a.dtype == jnp.bool_ else alone.sum(axes, dtype=a.dtype)
        return jnp.where(expand_dims_like(counts, a), a, one)

    return jax.tree.map(replace, rows)
