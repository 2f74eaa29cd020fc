"""Truncated backpropagation through time: how far back the credit of each loss travels.

Windows end at e = k1, 2·k1, …; the one that ends at e starts from the constant h_{max(0, e−k2)}, and its gradient is
the exact gradient of its losses from there. The truncated gradient is the sum over the windows. The engine computes it
of the same pieces as exact BPTT, with windows side by side or, of those that meet, one after the other.
"""

import functools
from collections.abc import Sequence

import jax

from jax_bptt.checks.calls import over_sequences
from jax_bptt.checks.options import check_argnums, check_options, check_truncation
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call
from jax_bptt.engine.passes import value_and_gradient
from jax_bptt.engine.truncation.derivatives import derived_as
from jax_bptt.model import GradientFunction, Loss, Losses, Model, PyTree, Reduction, Save, step_of
from jax_bptt.reference.calls import sum_of_windows


def truncated_bptt(
    model: Model,
    loss: Loss,
    k1: int,
    k2: int,
    *,
    losses: Losses = "newest",
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    save: Save | None = None,
    unroll: int | None = None,
    burn_in: int = 0,
    context: int = 0,
    parallel: int | None = None,
) -> GradientFunction:
    """The gradient by backpropagation through time, truncated.

    Windows end at e = k1, 2·k1, …; where T is no multiple of k1, the result is that of the sequence padded to one with
    masked steps. With the params held fixed over the sequence,

        ∂L/∂θ ≈ Σ_e ∂/∂θ Σ_{t in losses of e} ℓ_t,    from the constant h_{max(0, e−k2)}

    so that a window evaluates at most k2 steps. Which losses a window has:

        losses="newest"  e−k1+1 … e           every loss once; it travels back at least k2−k1+1 and at most k2 steps
        losses="all"     max(0, e−k2)+1 … e   every loss in reach, so that one counts about k2/k1 times
        losses="last"    e                    one loss a window

    Windows overlap where k1 < k2, and have the same states there. Only the recursion of δ is run for each; credit,
    linearisation and immediate partials are done once per step. The backward pass is k2 steps deep, not T.

    Args:
        model, loss, argnums, reduction, save, unroll, burn_in: as for `bptt`. With `reduction="mean"`, a loss that
            counts twice weighs twice. With `save="boundaries"`, the state before every k1-th step is saved; of windows
            that are run one after the other, only one is there at a time, and of each of its steps what `bptt` saves by
            default. Windows are counted from the end of the burn-in. Where all begin at the outset, they are computed
            as by `bptt`.
        k1: steps from one window's end to the next.
        k2: steps that a window reaches back over.
        losses: "newest", "all" or "last".
        context: the first steps carry credit but have no loss, and windows are counted from their end; a multiple of
            k1. For streams where k2 > k1: with the inputs and targets of the last k1·⌈(k2−k1)/k1⌉ steps of the chunk
            before in front of a chunk, chunks add up to the whole. The state returned is that before the last `context`
            steps, the next chunk's context. (In front of the first chunk put any steps, and `reset` after them.)
        parallel: windows side by side; more take more memory, and are faster up to a point. With 1, windows of k1 = k2
            are run one after the other, each forwards and backwards, in the memory of one. None leaves it to
            `jax_bptt.engine.plan.default_lanes`, which is 1 of them where the batch has at least 8 examples; so it is
            with `save="boundaries"`, and of a step that is better left whole, as by `bptt`.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> ((loss, state), grads)`, as
        `bptt` does. The gradient with respect to state and xs is zero where no credit arrives. What is returned is
        differentiated with the same cuts: its second derivatives are those of windows that begin in constants.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form;
            for k2 < k1 with `losses="newest"`, by which losses would be dropped.

    Source:
        R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories", 1990: BPTT(h; h′), with h = k2 and h′ = k1; I. Sutskever, "Training recurrent neural networks",
        2013, section 2.8.6, whose algorithm this is, with the double counting left out.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, asked = check_options(loss, reduction, burn_in, save, parallel=parallel, unroll=unroll)
    k1, k2, context = check_truncation(k1, k2, losses, context)
    several = {"losses": losses, "argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
    by_windows = functools.partial(sum_of_windows, k1=k1, k2=k2, **several)

    @over_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        def side_by_side(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
            scheduled = schedule.truncated(call.steps, k1, k2, losses, burn_in, context)
            return value_and_gradient(call, scheduled, argnums, reduction=reduction, **asked)

        return derived_as(by_windows, side_by_side, call)

    return gradient
