"""The gradient of one window, and the reverse pass over windows.

    states of the window, its inputs and targets, δ at its end  →  loss, gradient of the weights, δ at its start

With δ_t = ∂L/∂h_t (Williams & Peng 1990; the immediate partials ∂⁺ of Pascanu, Mikolov & Bengio 2013):

1. `credit`: (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t, from the losses of all rows at once;
2. `linearise`, all rows at once; then `recur`, δ_t = credit_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1}: the only loop over time
   steps, which holds nothing but this recursion;
3. `immediate`: Σ_t (∂⁺h_t/∂θ)ᵀ δ_t, all rows at once, one matrix product per weight.

δ and cotangents are lists of leaves with None in place of leaves that have no derivative, or whose is not asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt import pullback
from jax_bptt.forward import Recurrence, Rows, Saved, Steps, project_rows, read_rows, restore, rows_of
from jax_bptt.losses import masked
from jax_bptt.model import Loss
from jax_bptt.products import with_sums
from jax_bptt.split import Leaves, combine, differentiable
from jax_bptt.windows import PerWindow, Windows, over, scan

Pull = Callable[[Any, Any, Any, int], tuple[jax.Array, Leaves]]
"""`(outputs, targets, mask, axes) -> (losses, cotangents of the leaves of the outputs)`, of rows of so many axes."""


class Objective(NamedTuple):
    """Where the credit comes from."""

    pull: Pull
    targets: Any  # [T, B, …]
    mask: jax.Array | None  # [T, B], in the dtype of the loss
    dtype: Any
    """In which the losses are summed."""


class Wanted(NamedTuple):
    """With respect to what the gradient is wanted beside the state: weights and inputs, None where it is not."""

    weights: Leaves
    xs: Leaves

    def zeros(self) -> Leaves:
        """Where gradients of the weights are summed up: zeros in at least single precision, `lying`."""
        return lying([None if w is None else jnp.zeros(w.shape, accumulator(w.dtype)) for w in self.weights])

    def upright(self, sums: Leaves) -> Leaves:
        """Sums of gradients in the shapes of the weights."""
        return [s if s is None or s.shape == w.shape else s.T for s, w in zip(sums, self.weights, strict=True)]


class Credit(NamedTuple):
    """What the losses of all rows say, before anything is handed back in time."""

    losses: jax.Array  # [W, B]
    weights: Leaves
    xs: Leaves
    to_after: Leaves
    """The credit to the state after each step; None for leaves that the readout does not read."""
    to_before: Leaves
    """The credit to the state before each step, where the readout reads it, too."""


class WindowGradient(NamedTuple):
    """The gradient of one window."""

    loss: jax.Array
    weights: Leaves
    start: Leaves
    """δ at the start: with respect to the state before the first step, leaves of `[B, …]`."""
    deltas: Leaves
    """δ of the state after each step, leaves of `[W, B, …]`."""
    xs: Leaves
    """The cotangents of the inputs, leaves of `[W, B, …]`."""


def pull_loss(loss: Loss, scale: jax.Array) -> Pull:
    """The losses scale · mask · loss(output, target) of all rows, and their cotangents."""

    def pull(outputs: Any, targets: Any, mask: jax.Array | None, axes: int) -> tuple[jax.Array, Leaves]:
        leaves, structure = jax.tree.flatten(outputs)

        def losses(some):
            outputs = jax.tree.unflatten(structure, combine(some, leaves))
            if mask is None:
                values = over(loss, 0, axes)(outputs, targets)
            else:
                values = over(masked(loss), 0, axes)(outputs, targets, mask)
            values = scale * values.astype(scale.dtype)
            return values.sum(), values

        (_, values), cotangents = jax.value_and_grad(losses, has_aux=True)(differentiable(leaves))
        return values, cotangents

    return pull


def window_gradient(
    recurrence: Recurrence,
    start: Leaves,
    steps: Steps,
    x: Leaves,
    objective: Objective,
    delta: Leaves,
    wanted: Wanted,
) -> WindowGradient:
    """The exact gradient of one window's losses and of `delta · state at its end`.

    Args:
        recurrence: what is differentiated.
        start: the state before the window's first step, leaves of `[B, …]`.
        steps: what is known of its steps.
        x: its inputs, leaves of `[W, B, …]`.
        objective: its losses; targets and mask are those of the window.
        delta: δ at its end, leaves of `[B, …]`.
        wanted: which of weights and xs a gradient is wanted for.
    """
    rows = rows_of(start, steps, x)
    from_losses = credit(recurrence, rows, objective.pull, objective.targets, objective.mask, wanted)
    by_step = linearise(recurrence, rows), from_losses.to_after, from_losses.to_before
    delta_start, deltas = recur(recurrence, delta, by_step, x[0].shape[0])
    weights_bar, x_bar = immediate(recurrence, rows, deltas, wanted)
    return WindowGradient(
        loss=from_losses.losses.sum(),
        weights=add(weights_bar, from_losses.weights),
        start=delta_start,
        deltas=deltas,
        xs=add(x_bar, from_losses.xs),
    )


def credit(
    recurrence: Recurrence,
    rows: Rows,
    pull_losses: Pull,
    targets: Any,
    mask: jax.Array | None,
    wanted: Wanted,
    counts: jax.Array | None = None,
) -> Credit:
    """What the losses of all rows say: credit to the states, and the gradient through the readout itself.

    Args:
        targets, mask: those of the rows, `[W, B, …]` and `[W, B]`.
        counts: how often each row's loss counts, like the mask or with axes of 1; the credit to the states is that of
            counting it once.
    """
    parts = recurrence.parts

    def outputs(w, after, x, before):
        read = combine(before, rows.before), combine(after, rows.after), rows.kept, combine(x, rows.x)
        made = read_rows(recurrence._replace(weights=combine(w, recurrence.weights)), Rows(*read))
        return differentiable(jax.tree.leaves(made)), made

    _, pull, made = jax.vjp(
        outputs,
        wanted.weights,
        _only(parts.reads_after, differentiable(rows.after)),
        _wanted_rows(wanted.xs, rows.x),
        _only(parts.reads_before, differentiable(rows.before)),
        has_aux=True,
    )
    losses, cotangents = pull_losses(made, targets, mask, 1 + recurrence.batch_axes)
    weights_bar, to_after, xs_bar, to_before = with_sums(pull, cotangents)
    if counts is not None:
        losses = counts * losses
        counted = jax.tree.map(lambda c: along(counts, c).astype(c.dtype) * c, cotangents)
        weights_bar, _, xs_bar, _ = with_sums(pull, counted)
    return Credit(losses, weights_bar, xs_bar, to_after, to_before)


def linearise(recurrence: Recurrence, rows: Rows) -> Leaves:
    """What the recursion of δ needs of each row."""
    of_rows = recurrence.over_rows(recurrence.pullback.linearise, (None, 0, 0, 0, 0))
    return of_rows(recurrence.weights, rows.before, project_rows(recurrence, rows.x), rows.after, rows.kept)


def recur(
    recurrence: Recurrence, delta: Leaves, steps: tuple[Leaves, Leaves, Leaves], length: int
) -> tuple[Leaves, Leaves]:
    """The recursion of δ, backwards in time.

    Args:
        delta: δ at the end, leaves of `[B, …]`.
        steps: residuals, credit to the state after and credit to the state before each step, leaves of `[W, B, …]`.
        length: W.

    Returns:
        δ at the start, and δ of the state after each step, `[W, B, …]`.
    """
    fixed = recurrence.pullback.prepare(recurrence.weights)
    pull = recurrence.over_batch(recurrence.pullback.pull, (None, 0, 0))

    def back(delta, step):
        residuals_t, to_after_t, to_before_t = step
        delta_t = add(delta, to_after_t)
        return add(pull(fixed, residuals_t, delta_t), to_before_t), delta_t

    return jax.lax.scan(back, delta, steps, length=length, reverse=True)


def immediate(recurrence: Recurrence, rows: Rows, deltas: Leaves, wanted: Wanted) -> tuple[Leaves, Leaves]:
    """The sum of the immediate partials, the state before each step held constant.

    Args:
        deltas: δ of the state after each step, leaves of `[W, B, …]`.

    Returns:
        The gradient of the weights, and the cotangents of the inputs, `[W, B, …]`.
    """

    def partials(deltas: Leaves) -> tuple[Leaves, Leaves]:
        def project(weights, x):
            drive = project_rows(recurrence._replace(weights=combine(weights, recurrence.weights)), combine(x, rows.x))
            return differentiable(drive), drive

        _, pull, drive = jax.vjp(project, wanted.weights, _wanted_rows(wanted.xs, rows.x), has_aux=True)
        advance = recurrence.over_rows(recurrence.pullback.advance, (None, 0, 0))
        known = rows.before, drive, rows.after, rows.kept
        by_transition, drive_bar = pullback.immediate(advance, recurrence.weights, known, deltas, wanted.weights)
        by_drive, xs_bar = pull(drive_bar)
        return add(by_transition, by_drive), xs_bar

    return with_sums(partials, deltas)


def reverse(
    recurrence: Recurrence,
    saved: Saved,
    xs: Leaves,
    objective: Objective,
    delta: Leaves,
    windows: Windows,
    wanted: Wanted,
    emit: Callable[[WindowGradient], Any],
) -> tuple[tuple[jax.Array, Leaves, Leaves], PerWindow]:
    """The exact gradient of the whole sequence: windows from last to first, δ handed on.

    Args:
        recurrence: what is differentiated.
        saved: what the forward pass saved.
        xs: the inputs, leaves of `[T, B, …]`.
        objective: the losses.
        delta: δ at the end, leaves of `[B, …]`.
        windows: how time is cut.
        wanted: which of weights and xs a gradient is wanted for.
        emit: picks from a window's gradient what is returned of every window.

    Returns:
        Loss, gradient of the weights, δ at the start; and what `emit` picked.
    """

    def window(carry, timed, start):
        loss, weights_bar, delta = carry
        x, targets, mask, steps = timed
        of_window = objective._replace(targets=targets, mask=mask)
        steps = restore(recurrence, start, steps, x)
        gradient = window_gradient(recurrence, start, steps, x, of_window, delta, wanted)
        return (loss + gradient.loss, add(weights_bar, lying(gradient.weights)), gradient.start), emit(gradient)

    timed = xs, objective.targets, objective.mask, saved.steps
    carry = jnp.zeros((), objective.dtype), wanted.zeros(), delta
    (loss, weights_bar, delta), out = scan(window, carry, timed, windows, stored=saved.starts, reverse=True)
    return (loss, wanted.upright(weights_bar), delta), out


def lying(weights: Leaves) -> Leaves:
    """Matrices with their longer side across, as `products` makes them: transposed where they are taller than wide."""
    return [w.T if w is not None and w.ndim == 2 and w.shape[0] > w.shape[1] else w for w in weights]


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums of `dtype` over time are kept: at least single precision."""
    return jnp.promote_types(dtype, jnp.float32)


def add(some: Leaves, more: Leaves) -> Leaves:
    """The sum, leaf by leaf, in the dtype of the first; None is zero."""
    return [b if a is None else a if b is None else a + b.astype(a.dtype) for a, b in zip(some, more, strict=True)]


def along(some: jax.Array, other: jax.Array) -> jax.Array:
    """An array of the first axes of another, to be broadcast along its other ones."""
    return some.reshape(*some.shape, *[1] * (other.ndim - some.ndim))


def _only(chosen: tuple[bool, ...], leaves: Leaves) -> Leaves:
    return [leaf if choose else None for choose, leaf in zip(chosen, leaves, strict=True)]


def _wanted_rows(wanted: Leaves, rows: Leaves) -> Leaves:
    return [None if w is None else row for w, row in zip(wanted, rows, strict=True)]
