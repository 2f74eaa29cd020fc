"""From a call to what the passes work on, and back: flat leaves, the step taken apart, the losses as they count.

flat      = flatten_call(call, argnums)              a recurrence, its state and inputs
objective = objective_of(call, reduction, schedule)  where the credit comes from
grads     = unflatten_gradients(…)                   cotangents of flat leaves in the structures of the user
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.leaves import Leaves, accumulator, combine, differentiable, divide, expand_dims_like, is_key, zeros
from jax_bptt.engine.plan import TRANSPOSE_FROM
from jax_bptt.engine.pullback import Pullback, split_pullback
from jax_bptt.engine.schedule import Schedule
from jax_bptt.engine.split import SplitStep, split_step
from jax_bptt.engine.windows import vmap_leading, without_leading
from jax_bptt.model import Loss, PyTree, Reduction, Step


class Call(NamedTuple):
    """A step, a loss and the arguments that they are called with, checked; leaves are arrays."""

    step: Step
    loss: Loss | None
    params: PyTree
    state: PyTree  # [B, …]
    xs: PyTree  # [T, B, …]
    targets: PyTree  # [T, B, …]
    mask: jax.Array | None  # [T, B], in the dtype of the loss
    reset: jax.Array | None  # [T, B] of booleans
    reset_state: PyTree  # [B, …]
    steps: int  # T
    batch: int  # B
    loss_dtype: Any  # none where there is no loss


class Inputs(NamedTuple):
    """What comes in at each step."""

    x: Leaves  # [T, B, …]
    reset: jax.Array | None  # [T, B]


class Recurrence(NamedTuple):
    """A step, as it is run and differentiated: its parts, the weights that it runs with, the transition's pullback."""

    parts: SplitStep
    weights: Leaves
    pullback: Pullback
    state: Leaves  # shapes of the state of one example
    reset_to: Leaves  # what a reset puts the state back to, [B, …]; None for leaves that go on
    batch: tuple[int, ...]  # the axes of the batch: the examples, B, and in truncation blocks side by side before them

    def over_batch(self, function: Callable, in_axes: Any) -> Callable:
        """`function` of one example, over the batch."""
        return vmap_leading(function, in_axes, self.batch)

    def over_rows(self, function: Callable, in_axes: Any, steps: int | None = None) -> Callable:
        """`function` of one row, over time and batch; of so many steps, None where the arguments tell."""
        return vmap_leading(function, in_axes, (steps, *self.batch))

    def put_back(self, reset: jax.Array | None, state: Leaves) -> Leaves:
        """The gate of the forward loop, h ← where(reset, h₀, h), of any axes; `recur` has that of the reverse."""
        if reset is None:
            return state
        return [
            s if s is None or to is None else jnp.where(expand_dims_like(reset, s), jnp.broadcast_to(to, s.shape), s)
            for to, s in zip(self.reset_to, state, strict=True)
        ]


class Wrt(NamedTuple):
    """With respect to what the gradient is wanted beside the state: leaves, None where it is not."""

    weights: Leaves
    xs: Leaves
    reset_to: Leaves


class FlatCall(NamedTuple):
    """What the passes work on."""

    recurrence: Recurrence
    wrt: Wrt
    state: Leaves  # [B, …]
    inputs: Inputs
    pull_weights: Callable[[Leaves], PyTree]  # from cotangents of the weights to the gradient of the params

    def after(self, burn_in: int, state: Leaves) -> "FlatCall":
        """What is left after a burn-in to that state, which is a constant."""
        constant = [s if is_key(s) else jax.lax.stop_gradient(s) for s in state]
        inputs, xs = jax.tree.map(lambda a: a[burn_in:], (self.inputs, self.wrt.xs))
        return self._replace(state=constant, inputs=inputs, wrt=self.wrt._replace(xs=xs))


def flatten_call(call: Call, argnums: Sequence[int] = (), *, wrt_reset_state: bool = False) -> FlatCall:
    """Split the step and prepare the weights.

    Args:
        argnums: with respect to what beside the state a gradient is wanted: 0 params, 2 xs.
        wrt_reset_state: whether it is wanted with respect to the state to reset to.
    """
    one_state, one_x = without_leading(call.state, 1), without_leading(call.xs, 2)
    transpose = call.batch >= TRANSPOSE_FROM
    parts = split_step(call.step, call.params, one_state, one_x, transpose=transpose)
    params, params_structure = jax.tree.flatten(call.params)

    def prepare(params: Leaves) -> tuple[Leaves, Leaves]:
        weights = parts.prepare(params)
        wanted = [0 in argnums and from_params for from_params in parts.from_params]
        return [w if want else None for w, want in zip(differentiable(weights), wanted, strict=True)], weights

    trained, pull, weights = jax.vjp(prepare, params, has_aux=True)

    def pull_weights(weights_bar: Leaves) -> PyTree:
        cast = [bar if w is None else bar.astype(w.dtype) for bar, w in zip(weights_bar, trained, strict=True)]
        return jax.tree.unflatten(params_structure, pull(cast)[0])

    state, xs, shapes = jax.tree.leaves(call.state), jax.tree.leaves(call.xs), jax.tree.leaves(one_state)
    drive = jax.eval_shape(parts.project, weights, jax.tree.leaves(one_x))
    pullback = split_pullback(parts.transition_with_effects, weights, shapes, drive, parts.costly, transpose=transpose)
    zero = [None if call.reset is None or is_key(s) else jnp.zeros_like(s) for s in state]
    reset_to = jax.tree.leaves(call.reset_state) or zero
    wrt_xs = differentiable(xs) if 2 in argnums else [None] * len(xs)
    wrt_reset_to = differentiable(reset_to) if wrt_reset_state and call.reset_state is not None else [None] * len(state)
    recurrence = Recurrence(parts, weights, pullback, shapes, reset_to, (call.batch,))
    return FlatCall(recurrence, Wrt(trained, wrt_xs, wrt_reset_to), state, Inputs(xs, call.reset), pull_weights)


# The losses.

Pull = Callable[[PyTree, PyTree, jax.Array | None, int], tuple[jax.Array, Leaves]]
"""`(outputs, targets, mask, axes) -> (losses, cotangents of the leaves of the outputs)`, of rows of so many axes."""


class Objective(NamedTuple):
    """Where the credit comes from."""

    pull: Pull
    targets: PyTree  # [T, B, …]
    mask: jax.Array | None  # [T, B], in the dtype of the loss
    dtype: Any  # in which the losses are summed


def objective_of(call: Call, reduction: Reduction, schedule: Schedule) -> Objective:
    """The losses of a call, after the burn-in, as they count."""
    assert call.loss is not None
    counts = schedule.counts()
    targets, mask = jax.tree.map(lambda a: a[schedule.burn_in :], (call.targets, call.mask))
    if not counts.all():
        mask = jnp.ones((schedule.steps, call.batch), call.loss_dtype) if mask is None else mask
        mask = jnp.where(jnp.asarray(counts > 0)[:, None], mask, 0)
    dtype = accumulator(call.loss_dtype)
    if reduction == "sum":
        scale = jnp.ones((), dtype)
    elif mask is None:
        scale = jnp.asarray(1 / (counts.sum() * call.batch), dtype)
    else:
        weight = (mask * jnp.asarray(counts, dtype)[:, None]).sum(dtype=dtype)
        scale = divide(1, weight)
    return Objective(_pull_loss(call.loss, scale), targets, mask, dtype)


def _pull_loss(loss: Loss, scale: jax.Array) -> Pull:
    """The losses scale · mask · loss(output, target) of all rows, and their cotangents."""

    def pull(outputs: PyTree, targets: PyTree, mask: jax.Array | None, axes: int) -> tuple[jax.Array, Leaves]:
        leaves, structure = jax.tree.flatten(outputs)

        def losses(some: Leaves) -> tuple[jax.Array, jax.Array]:
            outputs = jax.tree.unflatten(structure, combine(some, leaves))
            of_row, rows = (loss, ()) if mask is None else (masked(loss), (mask,))
            values = vmap_leading(of_row, 0, [None] * axes)(outputs, targets, *rows)
            values = scale * values.astype(scale.dtype)
            return values.sum(), values

        (_, values), cotangents = jax.value_and_grad(losses, has_aux=True)(differentiable(leaves))
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
        return jnp.where(counts, weight * loss(output, target), 0)

    return weighted


# And back.


def unflatten_state(call: Call, leaves: Leaves) -> PyTree:
    """Leaves of the state in the user's structure."""
    return jax.tree.unflatten(jax.tree.structure(call.state), leaves)


def unflatten_like(tree: PyTree, leaves: Leaves) -> PyTree:
    """Cotangents in the structure of `tree`, with zeros of float0 for leaves that have no derivative."""
    old, structure = jax.tree.flatten(tree)
    nothing = [np.zeros(leaf.shape, jax.dtypes.float0) for leaf in old]
    return jax.tree.unflatten(structure, combine(leaves, nothing))


def unflatten_gradients(
    call: Call, argnums: int | Sequence[int], burn_in: int, params_bar: PyTree, start_bar: Leaves, xs_bar: Leaves
) -> PyTree:
    """Cotangents of flat leaves as what `argnums` asks for; those of the burn-in are zero."""

    def of(argument: int) -> PyTree:
        if argument == 0:
            return params_bar
        if argument == 1:
            return unflatten_like(call.state, zeros((), start_bar) if burn_in else start_bar)
        before = [(burn_in, 0)]
        padded = jax.tree.map(lambda bar: jnp.pad(bar, before + [(0, 0)] * (bar.ndim - 1)) if burn_in else bar, xs_bar)
        return unflatten_like(call.xs, padded)

    return of(argnums) if isinstance(argnums, int) else tuple(map(of, argnums))
