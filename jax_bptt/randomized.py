"""Truncation without bias: how far credit travels is drawn, and what arrives is scaled so that it is right on average.

    artbp                   δ is handed on from a window with probability 1 − cut, as δ / (1 − cut)
    randomized_telescope    one horizon K_i is drawn with probability p_i, and (g_{K_i} − g_{K_{i−1}}) / p_i returned

The first is exact BPTT with gates in the recursion of δ; the second is made of truncated gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.checks.calls import over_drawn_sequences
from jax_bptt.checks.options import (
    check_argnums,
    check_cut,
    check_cuts,
    check_horizons,
    check_options,
    check_truncation,
)
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import full, scaled, varying
from jax_bptt.engine.passes import value_and_gradient
from jax_bptt.engine.truncation.derivatives import derived_as
from jax_bptt.engine.truncation.draws import draw_gates, draw_horizon
from jax_bptt.model import DrawnGradient, Loss, Losses, Model, PyTree, Reduction, Save, step_of
from jax_bptt.reference.calls import telescope, through_gates


def artbp(
    model: Model,
    loss: Loss,
    k1: int,
    cut: float | Sequence[float],
    *,
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    window: int | None = None,
    save: Save | None = None,
    unroll: int | None = None,
    burn_in: int = 0,
    context: int = 0,
) -> DrawnGradient:
    """An unbiased estimate of the exact gradient, by BPTT that is cut at random: anticipated reweighted truncated BPTT.

    Boundaries are k1 steps apart, as for `truncated_bptt`. At each of them the credit of each example is cut with
    probability c, and else scaled, so that δ̃_t is δ_t on average, and the gradient the exact one:

        δ̃_t   = (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t + γ_t (∂h_{t+1}/∂h_t)ᵀ δ̃_{t+1}       γ_t = 1/(1 − c), or 0, at boundaries; else 1
        ∂L/∂θ ≈ Σ_t (∂⁺h_t/∂θ)ᵀ δ̃_t + Σ_t (∂⁺ŷ_t/∂θ)ᵀ ∂ℓ_t/∂ŷ_t

    Credit that travels over n boundaries does so with probability (1 − c)ⁿ and weighs (1 − c)⁻ⁿ: where credit decays
    by β in k1 steps the variance is finite for β² < 1 − c. A pass over a whole sequence takes as long as one of `bptt`,
    whatever is drawn; it is in streams that the cut spares something, see `training.train_online`.

    Args:
        model, loss, argnums, reduction, window, save, unroll, burn_in: as for `bptt`. Boundaries are counted from the
            end of the burn-in.
        k1: steps from one boundary to the next; none is at the outset, so that the gradient with respect to the state
            is an estimate of the exact one, too.
        cut: the probability of a cut, at least 0 and less than 1, or one for each boundary, first to last.
        context: the first steps carry credit but have no loss; a multiple of k1. The state returned is that before the
            last `context` steps, as of `truncated_bptt`.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None, length=None, *, key)`, which
        returns `((loss, state), grads)` as `bptt` does: loss and state are the true ones, and derivatives of them are
        cut as `grads` are. All is drawn from `key`, for each example, and the same key gives the same bits:
        split it for each call. `jax.vmap` over keys makes many estimates (with keys of `rbg` others than one by one,
        as JAX has it).

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.

    Source:
        C. Tallec and Y. Ollivier, "Unbiasing truncated backpropagation through time", 2017.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, asked = check_options(loss, reduction, burn_in, save, window=window, unroll=unroll)
    k1, _, context = check_truncation(k1, k1, "newest", context)
    cut = check_cut(cut)
    several = {"argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
    by_scan = functools.partial(through_gates, **several)

    def by_hand(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        scheduled = schedule.exact(call.steps, burn_in, context=context)
        return value_and_gradient(call, scheduled, argnums, reduction=reduction, **asked)

    @over_drawn_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call, key: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        gates = draw_gates(key, check_cuts(cut, call.steps, k1, burn_in), call, k1, burn_in)
        return derived_as(by_scan, by_hand, call._replace(gate=gates))

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
    save: Save | None = None,
    unroll: int | None = None,
    burn_in: int = 0,
    context: int = 0,
    parallel: int | None = None,
) -> DrawnGradient:
    """An unbiased estimate of the gradient with the longest of several horizons, from two of them that are drawn.

    With g_K the truncated gradient for k2 = K, K_1 < … < K_n, g_{K_0} = 0, and i drawn with probability p_i,

        g̃ = (g_{K_i} − g_{K_{i−1}}) / p_i,        E[g̃] = Σ_i (g_{K_i} − g_{K_{i−1}}) = g_{K_n}

    which with the newest losses is the exact gradient where K_n is no less than the steps of the sequence. Only the two
    gradients that were drawn are computed, though all are compiled; under `jax.vmap` over keys all are computed. It
    pays where gradients of long horizons differ little: p_i is best in proportion to ‖g_{K_i} − g_{K_{i−1}}‖ / √(time
    of the two).

    Args:
        model, loss, k1, losses, argnums, reduction, save, unroll, burn_in, context, parallel: as for `truncated_bptt`.
        horizons: K_1 < … < K_n; those beyond the steps of a sequence are all of them.
        probabilities: p_i, positive and with a sum of 1.

    Returns:
        `gradient(…, key)`, as of `artbp`; one horizon is drawn for the whole batch. The loss is that of the longer of
        the two, which with the newest losses is the true one.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.

    Source:
        A. Beatson and R. P. Adams, "Efficient optimization of loops and limits with randomized telescoping sums", 2019:
        the single-sample estimator.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, asked = check_options(loss, reduction, burn_in, save, parallel=parallel, unroll=unroll)
    k1, _, context = check_truncation(k1, k1, losses, context)
    many, shares = check_horizons(horizons, probabilities, k1, losses)
    several: dict[str, Any] = {"losses": losses, "argnums": argnums, "reduction": reduction}
    several |= {"burn_in": burn_in, "context": context}
    by_windows = functools.partial(telescope, k1=k1, horizons=many, **several)

    def by_hand(call: Call, drawn: jax.Array, scale: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        def of_horizon(k2: int, call: Call) -> Any:
            scheduled = schedule.truncated(call.steps, k1, k2, losses, burn_in, context)
            return value_and_gradient(call, scheduled, argnums, reduction=reduction, **asked)

        like = jax.eval_shape(lambda: of_horizon(many[0], call))
        nothing = jax.tree.map(lambda leaf: full(leaf.shape, leaf.dtype, varying(leaf)), like)
        ways = [lambda: nothing, *[functools.partial(of_horizon, k2, call) for k2 in many]]
        # The longer one, then the shorter: in a loop, so that each is compiled but once.
        returned, grads = jax.lax.map(lambda place: jax.lax.switch(place, ways), jnp.stack([drawn + 1, drawn]))
        differences = scaled(scale, [longer - shorter for longer, shorter in jax.tree.leaves(grads)])
        of_longer = jax.tree.map(lambda pair: pair[0], returned)
        return of_longer, jax.tree.unflatten(jax.tree.structure(grads), differences)

    @over_drawn_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call, key: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        return derived_as(by_windows, by_hand, call, *draw_horizon(key, shares, call))

    return gradient
