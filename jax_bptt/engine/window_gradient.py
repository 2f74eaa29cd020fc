"""The gradient of one window: the idea. Start here.

    states of the window, its inputs and targets, δ at its end  →  loss, gradient of the weights, δ at its start

With δ_t = ∂L/∂h_t (Williams & Peng 1990; the immediate partials ∂⁺ of Pascanu, Mikolov & Bengio 2013):

1. `credit_from_losses`: (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t, from the losses of all rows at once;
2. `linearise`, all rows at once; then `recur`, δ_t = credit_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1}: the only loop over time
   steps, which holds nothing but this recursion (and is none on a GPU where `Recurrence.solvable` says so);
3. `immediate_partials`: Σ_t (∂⁺h_t/∂θ)ᵀ δ_t, all rows at once, one matrix product per weight.

Exact BPTT hands δ on from each window to the one before it (`passes`); truncated BPTT hands on nothing, so that its
windows run side by side (`truncation/reverse_truncated`) or, where they meet, in turn (`truncation/in_turn`).

δ and cotangents are lists of leaves with None in place of leaves that have no derivative, or whose is not asked for.
"""

from typing import Any, NamedTuple

import jax

from jax_bptt.engine.flatten import Recurrence, Wrt
from jax_bptt.engine.forward import Rows, project_rows, read_rows
from jax_bptt.engine.leaves import Leaves, add, combine, differentiable, expand_dims_like, only, scaled, where, zeros
from jax_bptt.engine.objective import Objective, instead_of_masked
from jax_bptt.engine.outer_products import with_outer_products
from jax_bptt.engine.plan import bodies_over
from jax_bptt.engine.platforms import AT_ONCE, by_platform
from jax_bptt.engine.solvers.block_maps import solve_backwards
from jax_bptt.engine.solvers.sequential import scan_steps
from jax_bptt.engine.step.pullback import transition_partials


class Gradient(NamedTuple):
    """The gradient of one window, or the sum of those of all; cotangents are None where none is wanted."""

    loss: jax.Array
    weights_bar: Leaves
    start_bar: Leaves  # δ at the start, of the state before the first step: [B, …]
    reset_bar: Leaves  # of the state to reset to, [B, …]
    deltas: Leaves  # δ of the state after each step, [W, B, …]
    xs_bar: Leaves  # of the inputs, [W, B, …]


def gradient_of_window(
    recurrence: Recurrence, rows: Rows, objective: Objective, delta: Leaves, wrt: Wrt, size: int
) -> Gradient:
    """The exact gradient of one window's losses and of `delta · state at its end`.

    Args:
        rows: all that is known of the window's W steps.
        objective: targets and mask are those of the window.
        delta: δ at its end, leaves of `[B, …]`.
        size: W.
    """
    credit = credit_from_losses(recurrence, rows, objective, wrt)
    steps = Linearised(
        linearise(recurrence, rows), credit.to_after, credit.to_before, rows.inputs.reset, rows.inputs.gate
    )
    start_bar, reset_bar, deltas = recur(recurrence, delta, steps, wrt, size)
    weights_bar, xs_bar = immediate_partials(recurrence, rows, deltas, wrt)
    weights_bar, xs_bar = add(weights_bar, credit.weights_bar), add(xs_bar, credit.xs_bar)
    return Gradient(credit.losses.sum(), weights_bar, start_bar, reset_bar, deltas, xs_bar)


class Credit(NamedTuple):
    """What the losses of all rows say, before anything is handed back in time."""

    losses: jax.Array  # [W, B]
    weights_bar: Leaves
    xs_bar: Leaves
    to_after: Leaves  # to the state after each step; None for leaves that the readout does not read
    to_before: Leaves  # to the state before each step, where the readout reads it, too


def credit_from_losses(
    recurrence: Recurrence, rows: Rows, objective: Objective, wrt: Wrt, counts: jax.Array | None = None
) -> Credit:
    """What the losses of all rows say: credit to the states, and the gradient through the readout itself.

    Where a loss is masked, another row is read in the place of that one: what the readout or the loss makes of it, an
    infinite derivative, is not there to be multiplied by zero.

    Args:
        objective: targets and mask are those of the rows.
        counts: how often each row's loss counts, like the mask or with axes of 1; the credit to the states is that of
            counting it once.
    """
    parts, (targets, mask) = recurrence.parts, (objective.targets, objective.mask)
    if objective.masked:
        assert mask is not None
        rows, targets = instead_of_masked(mask, (rows, targets))

    def outputs(w: Leaves, after: Leaves, x: Leaves, before: Leaves) -> tuple[Leaves, Any]:
        inputs = rows.inputs._replace(x=combine(x, rows.inputs.x))
        read = Rows(combine(before, rows.before), combine(after, rows.after), [], inputs)
        made = read_rows(recurrence._replace(weights=combine(w, recurrence.weights)), read)
        return only(objective.reads, differentiable(jax.tree.leaves(made))), made

    _, pull, made = jax.vjp(
        outputs,
        wrt.weights,
        only(parts.reads_after, recurrence.with_delta(rows.after)),
        only(wrt.xs, rows.inputs.x),
        only(parts.reads_before, recurrence.with_delta(rows.before)),
        has_aux=True,
    )
    axes = (rows.inputs.steps, *recurrence.lanes, *recurrence.batch)
    losses, cotangents = objective.pull(made, targets, mask, axes)
    weights_bar, to_after, xs_bar, to_before = with_outer_products(pull, cotangents)
    if counts is not None:
        counts = expand_dims_like(counts, losses)
        losses = counts * losses
        counted = [c if c is None else expand_dims_like(counts, c).astype(c.dtype) * c for c in cotangents]
        weights_bar, _, xs_bar, _ = with_outer_products(pull, counted)
    credit = Credit(losses, weights_bar, xs_bar, to_after, to_before)
    if objective.masked:  # all of them may be
        assert mask is not None
        credit = Credit(losses, *(where((mask != 0).any(), bar) for bar in credit[1:]))
    return credit


class Linearised(NamedTuple):
    """What the recursion of δ reads at each step; leaves of `[W, B, …]`."""

    coefficients: Leaves
    to_after: Leaves
    to_before: Leaves
    reset: jax.Array | None
    gate: jax.Array | None = None


def linearise(recurrence: Recurrence, rows: Rows) -> Leaves:
    """The coefficients of the recursion of δ, of all rows."""
    of_rows = recurrence.over_rows(recurrence.pullback.linearise, (None, 0, 0, 0, 0), rows.inputs.steps)
    drive = project_rows(recurrence, rows.inputs)
    return of_rows(recurrence.weights, rows.before, drive, rows.after, rows.residuals)


def recur(
    recurrence: Recurrence, delta: Leaves, steps: Linearised, wrt: Wrt, size: int
) -> tuple[Leaves, Leaves, Leaves]:
    """The recursion of δ, backwards in time. Where the state was reset, δ ← where(reset, 0, δ); at a gate, δ ← gate·δ.

    Args:
        delta: δ at the end, leaves of `[B, …]`.
        steps: what it reads, of W steps.
        size: W.

    Returns:
        δ at the start, what resets kept of it, `[B, …]`, and δ of the state after each step, `[W, B, …]`.
    """
    fixed = recurrence.pullback.fix(recurrence.weights)
    pull = recurrence.over_batch(recurrence.pullback.pull, (None, 0, 0))

    def back(carry: tuple[Leaves, Leaves], step: Linearised) -> tuple[tuple[Leaves, Leaves], Leaves]:
        delta, reset_bar = carry
        delta_t = add(delta, step.to_after)
        delta = add(pull(fixed, step.coefficients, delta_t), step.to_before)
        if step.reset is not None:
            reset_bar = add(reset_bar, where(step.reset, only(reset_bar, delta)))
            delta = where(~step.reset, delta)
        if step.gate is not None:
            delta = scaled(step.gate, delta)
        return (delta, reset_bar), delta_t

    carry = delta, zeros((), only(wrt.reset_to, delta))
    if not jax.tree.leaves(carry):  # no credit goes anywhere
        return *carry, delta

    def over_steps(unroll: int | bool) -> tuple[Leaves, Leaves, Leaves]:
        if unroll == AT_ONCE:
            return solve_backwards(recurrence, delta, *steps, wrt.reset_to, size)
        carried, deltas = scan_steps(back, carry, steps, size, reverse=True, unroll=unroll)
        return *carried, deltas

    return by_platform(over_steps, *bodies_over(size, recurrence.bodies, recurrence.solvable.backwards))


def immediate_partials(recurrence: Recurrence, rows: Rows, deltas: Leaves, wrt: Wrt) -> tuple[Leaves, Leaves]:
    """The sum of the immediate partials, the state before each step held constant: of the weights, and of each input.

    Args:
        deltas: δ of the state after each step, leaves of `[W, B, …]`.
    """
    x = rows.inputs.x

    def partials(deltas: Leaves) -> tuple[Leaves, Leaves]:
        def project(weights: Leaves, some: Leaves) -> tuple[Leaves, Leaves]:
            inputs = rows.inputs._replace(x=combine(some, x))
            drive = project_rows(recurrence._replace(weights=combine(weights, recurrence.weights)), inputs)
            return only(recurrence.pullback.has_drive_bar, drive), drive

        _, pull, drive = jax.vjp(project, wrt.weights, only(wrt.xs, x), has_aux=True)
        advance = recurrence.over_rows(recurrence.pullback.again, (None, 0, 0, 0), rows.inputs.steps)
        known = rows.before, drive, rows.after, rows.residuals
        of_what = wrt.weights, recurrence.pullback.has_drive_bar
        by_transition, drive_bar = transition_partials(advance, recurrence.weights, known, deltas, of_what)
        by_drive, xs_bar = pull(drive_bar)
        return add(by_transition, by_drive), xs_bar

    return with_outer_products(partials, deltas)
