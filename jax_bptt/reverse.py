"""The gradient of one window, and the reverse pass over windows.

    states of the window, its inputs and targets, δ at its end  →  loss, gradient of the weights, δ at its start

With δ_t = ∂L/∂h_t (Williams & Peng 1990; the immediate partials ∂⁺ of Pascanu, Mikolov & Bengio 2013):

1. credit: (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t, from the losses of all rows at once;
2. δ_t = credit_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1}: the transition linearised for all rows at once, then the only loop over
   time steps, which holds nothing but this recursion;
3. immediate partials: Σ_t (∂⁺h_t/∂θ)ᵀ δ_t, all rows at once, one matrix product per weight.

δ and cotangents are lists of leaves with None in place of leaves that have no derivative, or whose is not asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.forward import run_window
from jax_bptt.losses import masked
from jax_bptt.model import Loss
from jax_bptt.split import Leaves, Parts, Pullback, combine, differentiable, split_pullback
from jax_bptt.windows import PerWindow, Windows, example, fold, scan, unfold


class Objective(NamedTuple):
    """What is summed: scale · Σ mask · loss(output, target)."""

    loss: Loss
    scale: jax.Array  # [], in the dtype in which the losses are summed
    targets: Any  # [T, B, …]
    mask: jax.Array | None  # [T, B], in the dtype of the loss


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


class Wanted(NamedTuple):
    """With respect to what the gradient is wanted beside the state: weights and inputs, None where it is not."""

    weights: Leaves
    xs: Leaves


def window_gradient(
    parts: Parts,
    pullback: Pullback,
    weights: Leaves,
    states: tuple[Leaves, Leaves],
    x: Leaves,
    objective: Objective,
    delta: Leaves,
    wanted: Wanted,
) -> WindowGradient:
    """The exact gradient of one window's losses and of `delta · state at its end`.

    Args:
        parts: the step's parts, and its `pullback`.
        weights: what `parts.prepare` made of the params.
        states: the state after the window's last step, `[B, …]`, and that before every step, `[W, B, …]`.
        x: its inputs, leaves of `[W, B, …]`.
        objective: its losses; targets and mask are those of the window.
        delta: δ at its end, leaves of `[B, …]`.
        wanted: which of weights and xs a gradient is wanted for.
    """
    end, before = states
    batch = end[0].shape[0]
    after = [
        jnp.concatenate([b[1:], e[None]]) if read else b
        for b, e, read in zip(before, end, parts.reads_after, strict=True)
    ]
    before_rows, after_rows, x_rows = fold(before), fold(after), fold(x)
    wanted_x = [None if w is None else rows for w, rows in zip(wanted.xs, x_rows, strict=True)]

    # 1. Credit from the losses, all rows at once.
    readout = jax.vmap(parts.readout, in_axes=(None, 0, 0, 0))

    def losses(w, after, x, before):
        outputs = readout(
            combine(w, weights), combine(after, after_rows), combine(x, x_rows), combine(before, before_rows)
        )
        return total(objective, outputs, fold(objective.targets), fold(objective.mask))

    loss, (weights_readout, to_after, x_readout, to_before) = jax.value_and_grad(losses, argnums=(0, 1, 2, 3))(
        wanted.weights,
        _only(parts.reads_after, differentiable(after_rows)),
        wanted_x,
        _only(parts.reads_before, differentiable(before_rows)),
    )

    # 2. The recursion of δ, backwards in time.
    drive_rows = jax.vmap(parts.project, in_axes=(None, 0))(weights, x_rows)
    fixed = pullback.prepare(weights)
    residuals = jax.vmap(pullback.linearise, in_axes=(None, 0, 0))(weights, before_rows, drive_rows)
    pull = jax.vmap(pullback.pull, in_axes=(None, 0, 0))

    def back(delta, step):
        residuals_t, to_after_t, to_before_t = step
        delta_t = _add(delta, to_after_t)
        return _add(pull(fixed, residuals_t, delta_t), to_before_t), delta_t

    steps = unfold((residuals, to_after, to_before), batch)
    start, deltas = jax.lax.scan(back, delta, steps, length=before[0].shape[0], reverse=True)

    # 3. Immediate partials, all rows at once: the state before each step is held constant.
    transition = jax.vmap(parts.transition, in_axes=(None, 0, 0))
    project = jax.vmap(parts.project, in_axes=(None, 0))

    def immediate(w, x):
        drive = project(combine(w, weights), combine(x, x_rows))
        return differentiable(transition(combine(w, weights), before_rows, drive))

    _, pull_immediate = jax.vjp(immediate, wanted.weights, wanted_x)
    weights_transition, x_transition = pull_immediate(fold(deltas))
    return WindowGradient(
        loss=loss,
        weights=_add(weights_transition, weights_readout),
        start=start,
        deltas=deltas,
        xs=unfold(_add(x_transition, x_readout), batch),
    )


def reverse(
    parts: Parts,
    weights: Leaves,
    state: Leaves,
    stored: PerWindow,
    xs: Leaves,
    objective: Objective,
    windows: Windows,
    save: str,
    wanted: Wanted,
    emit: Callable[[WindowGradient], Any],
) -> tuple[tuple[jax.Array, Leaves, Leaves], PerWindow]:
    """The exact gradient of the whole sequence: windows from last to first, δ handed on.

    Args:
        state: the state after the last step, leaves of `[B, …]`.
        stored: what the forward pass saved of each window.
        xs: the inputs, leaves of `[T, B, …]`.
        emit: picks from a window's gradient what is returned of every window.

    Returns:
        Loss, gradient of the weights, δ at the start; and what `emit` picked.
    """
    drive = jax.eval_shape(jax.vmap(parts.project, in_axes=(None, 0)), weights, [x[0] for x in xs])
    pullback = split_pullback(parts.transition, weights, example(state, 1), example(drive, 1))

    def window(carry, timed, stored):
        loss, weights_bar, delta, end = carry
        x, targets, mask = timed
        if save == "states":
            before, start = stored, [b[0] for b in stored]
        else:
            before, start = run_window(parts, weights, stored, x, effects=False)[1], stored
        gradient = window_gradient(
            parts,
            pullback,
            weights,
            (end, before),
            x,
            objective._replace(targets=targets, mask=mask),
            delta,
            wanted,
        )
        carry = loss + gradient.loss, _add(weights_bar, gradient.weights), gradient.start, start
        return carry, emit(gradient)

    zero = jnp.zeros_like(objective.scale)
    weights_bar = jax.tree.map(lambda w: jnp.zeros(w.shape, accumulator(w.dtype)), wanted.weights)
    delta = jax.tree.map(jnp.zeros_like, differentiable(state))
    timed = (xs, objective.targets, objective.mask)
    carry, out = scan(window, (zero, weights_bar, delta, state), timed, windows, stored=stored, reverse=True)
    return carry[:3], out


def total(objective: Objective, outputs: Any, targets: Any, mask: jax.Array | None) -> jax.Array:
    """The sum scale · Σ mask · loss over rows: `outputs`, `targets` and `mask` have one leading axis."""
    if mask is None:
        losses = jax.vmap(objective.loss)(outputs, targets)
    else:
        losses = jax.vmap(masked(objective.loss))(outputs, targets, mask)
    return objective.scale * losses.sum(dtype=accumulator(losses.dtype))


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums of `dtype` over time are kept: at least single precision."""
    return jnp.promote_types(dtype, jnp.float32)


def _add(some: Leaves, more: Leaves) -> Leaves:
    """The sum, leaf by leaf, in the dtype of the first; None is zero."""
    return [b if a is None else a if b is None else a + b.astype(a.dtype) for a, b in zip(some, more, strict=True)]


def _only(chosen: tuple[bool, ...], leaves: Leaves) -> Leaves:
    return [leaf if choose else None for choose, leaf in zip(chosen, leaves, strict=True)]
