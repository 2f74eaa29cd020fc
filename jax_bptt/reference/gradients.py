"""The gradient functions of the reference: what is checked, and what of a call is drawn; `calls` computes them."""

from collections.abc import Sequence

import jax

from jax_bptt.checks.calls import over_drawn_sequences, over_sequences
from jax_bptt.checks.options import (
    check_argnums,
    check_cut,
    check_cuts,
    check_horizons,
    check_options,
    check_truncation,
)
from jax_bptt.engine.call import Call
from jax_bptt.engine.truncation.draws import draw_gates, draw_horizon
from jax_bptt.model import DrawnGradient, GradientFunction, Loss, Losses, Model, PyTree, Reduction, step_of
from jax_bptt.reference.calls import sum_of_windows, telescope, through_gates


def bptt(
    model: Model, loss: Loss, *, argnums: int | Sequence[int] = 0, reduction: Reduction = "sum", burn_in: int = 0
) -> GradientFunction:
    """The exact gradient, as `jax_bptt.bptt` computes it, by `jax.grad` through one `lax.scan`.

    Args:
        model, loss, argnums, reduction, burn_in: as for `jax_bptt.bptt`; but that `jax.grad` multiplies the derivatives
            of what the readout makes of a masked step by zero, which where they are infinite is NaN.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> ((loss, state), grads)`, as
        `jax_bptt.bptt` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.bptt`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)

    @over_sequences(step, loss, argnums=chosen, burn_in=burn_in)
    def gradient(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        return through_gates(call, argnums=argnums, reduction=reduction, burn_in=burn_in)

    return gradient


def truncated_bptt(
    model: Model,
    loss: Loss,
    k1: int,
    k2: int,
    *,
    losses: Losses = "newest",
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> GradientFunction:
    """The truncated gradient, as `jax_bptt.truncated_bptt` computes it, by `jax.grad` and `stop_gradient`.

    Every window is run again, from the state at its start as a constant.

    Args:
        model, loss, k1, k2, losses, argnums, reduction, burn_in, context: as for `jax_bptt.truncated_bptt`.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> ((loss, state), grads)`, as
        `jax_bptt.truncated_bptt` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.truncated_bptt`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)
    k1, k2, context = check_truncation(k1, k2, losses, context)

    @over_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        several = {"losses": losses, "argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
        return sum_of_windows(call, k1, k2, **several)

    return gradient


def artbp(
    model: Model,
    loss: Loss,
    k1: int,
    cut: float | Sequence[float],
    *,
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> DrawnGradient:
    """The gradient cut at random, as `jax_bptt.artbp` computes it, by `jax.grad`.

    A state h + (γ − 1)(h − stop_gradient(h)) has the value h, and hands back γ·δ.

    Args:
        model, loss, k1, cut, argnums, reduction, burn_in, context: as for `jax_bptt.artbp`, which draws the same of the
            same key.

    Returns:
        `gradient(…, key)`, as `jax_bptt.artbp` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.artbp`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)
    k1, _, context = check_truncation(k1, k1, "newest", context)
    cut = check_cut(cut)

    @over_drawn_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call, key: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        gates = draw_gates(key, check_cuts(cut, call.steps, k1, burn_in), call, k1, burn_in)
        several = {"argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
        return through_gates(call._replace(gate=gates), **several)

    return gradient


def randomized_telescope(
    model: Model,
    loss: Loss,
    k1: int,
    horizons: Sequence[int],
    probabilities: Sequence[float],
    *,
    losses: Losses = "newest",
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> DrawnGradient:
    """The telescope's one term, as `jax_bptt.randomized_telescope` draws and computes it, by `jax.grad`.

    Args:
        model, loss, k1, horizons, probabilities, losses, argnums, reduction, burn_in, context: as for
            `jax_bptt.randomized_telescope`.

    Returns:
        `gradient(…, key)`, as `jax_bptt.randomized_telescope` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.randomized_telescope`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)
    k1, _, context = check_truncation(k1, k1, losses, context)
    many, shares = check_horizons(horizons, probabilities, k1, losses)

    @over_drawn_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call, key: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        several = {"losses": losses, "argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
        return telescope(call, *draw_horizon(key, shares, call), k1=k1, horizons=many, **several)

    return gradient
