"""How wrong a truncated gradient is: measured beside the exact one, and told from how fast credit decays.

    relative error  ‖ĝ_k − g‖ / ‖g‖,    cosine  ⟨ĝ_k, g⟩ / ‖ĝ_k‖ ‖g‖        truncation_bias
    about           Σ_{j≥k} φ_j / Σ_j φ_j,  φ_j ∝ β^j for large j           estimated_bias, suggest_k2

g is the gradient of all sequences of a batch together, as in training: what differs from one to the next cancels in
it, in the error as in the gradient.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.checks.calls import over_sequences
from jax_bptt.checks.options import check_options, check_tolerance, check_truncation, describe
from jax_bptt.checks.trees import check_finite
from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import Leaves, divide
from jax_bptt.engine.schedule import Grid
from jax_bptt.exact import bptt
from jax_bptt.model import GradientFunction, Loss, Losses, Model, OverSequences, PyTree, Reduction, step_of
from jax_bptt.truncated import truncated_bptt

LEAST_LAGS = 8
"""In a profile whose decay can be told."""


class TruncationBias(NamedTuple):
    """How far truncated gradients are from the exact one; arrays of `[N]`, an entry for each truncation."""

    k1: jax.Array
    k2: jax.Array
    relative_error: jax.Array  # ‖ĝ − g‖ / ‖g‖, over all params
    cosine: jax.Array  # of the angle between ĝ and g, over all params
    standard_error: jax.Array
    """Of the relative error, as the sequences of the batch differ (jackknife); NaN for a batch of one."""
    relative_error_of: dict[str, jax.Array]  # the same for each param, by its name
    cosine_of: dict[str, jax.Array]


def truncation_bias(
    model: Model,
    loss: Loss,
    horizons: Sequence[int | tuple[int, int]],
    *,
    losses: Losses = "newest",
    reduction: Reduction = "sum",
    burn_in: int = 0,
    parameters: Sequence[str] | None = None,
) -> OverSequences[TruncationBias]:
    """How far truncated gradients are from the exact one, on a batch of sequences.

        relative error = ‖ĝ − g‖ / ‖g‖,    cosine = ⟨ĝ, g⟩ / ‖ĝ‖ ‖g‖

    Args:
        model, loss, reduction, burn_in: as for `jax_bptt.bptt`.
        horizons: the truncations: pairs (k1, k2), or k for k1 = k2 = k.
        losses: as for `jax_bptt.truncated_bptt`. Where losses count several times, or not at all, `reduction="mean"` is
            the fair comparison.
        parameters: the names of the params of which it is told one by one, such as `"cell.W_hh"`; all where None.

    Returns:
        `bias(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> TruncationBias`, of the arguments
        of the function that `bptt` returns. Gradients are computed of every sequence by itself, which takes the memory
        of 2·B of them; a standard error tells how sure the result is.

    Raises:
        TypeError, ValueError: for an option or argument that is not of this form, a name that no param has, and,
            outside of `jax.jit`, for a last state that is not finite.

    Source:
        C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to control gradient
        bias", 2019, for the relative bias; B. Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)
    grid = _check_horizons(horizons, losses)
    exact = bptt(model, loss, burn_in=burn_in)
    truncated = [truncated_bptt(model, loss, k1, k2, losses=losses, burn_in=burn_in) for k1, k2 in grid]

    @over_sequences(step, loss, argnums=(0,), burn_in=burn_in)
    def bias(call: Call) -> TruncationBias:
        steps = call.steps - burn_in
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(call.params)]
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
        _check_names(parameters, names)
        end, g = _of_each(exact, call)
        check_finite(jax.tree.map(lambda a: a[None], end))
        errors, deviations, cosines = [], [], []
        for (k1, k2), gradient in zip(grid, truncated, strict=True):
            _, g_hat = _of_each(gradient, call)
            if reduction == "mean":
                share = _share(call, burn_in, Grid(steps, k1, k2, losses).counts())
                g_hat = [a * share.astype(a.dtype) for a in g_hat]
            everything, *by_param = [(g_hat, g), *(([a], [b]) for a, b in zip(g_hat, g, strict=True))]
            errors.append([_relative_error(*pair) for pair in (everything, *by_param)])
            cosines.append([_cosine(*pair) for pair in (everything, *by_param)])
            deviations.append(_standard_error(*everything))
        error, *error_of = map(jnp.stack, zip(*errors, strict=True))
        cosine, *cosine_of = map(jnp.stack, zip(*cosines, strict=True))
        k1s, k2s = map(jnp.asarray, zip(*grid, strict=True))
        told = names if parameters is None else parameters

        def by_name(values: list[jax.Array]) -> dict[str, jax.Array]:
            return {name: values[names.index(name)] for name in told}

        return TruncationBias(k1s, k2s, error, cosine, jnp.stack(deviations), by_name(error_of), by_name(cosine_of))

    return bias


def _of_each(gradient: GradientFunction, call: Call) -> tuple[PyTree, Leaves]:
    """The state at the end, and the gradient of the losses of every sequence by itself, leaves of `[B, …]`."""

    def of_one(of_state: PyTree, timed: PyTree) -> tuple[PyTree, Leaves]:
        state, reset_state = jax.tree.map(lambda a: a[None], of_state)
        xs, targets, mask, reset = jax.tree.map(lambda a: a[:, None], timed)
        (_, end), grads = gradient(call.params, state, xs, targets, mask, reset, reset_state)
        return jax.tree.map(lambda a: a[0], end), jax.tree.leaves(grads)

    timed = call.xs, call.targets, call.mask, call.reset
    return jax.vmap(of_one, in_axes=(0, 1))((call.state, call.reset_state), timed)


def _share(call: Call, burn_in: int, counts: np.ndarray) -> jax.Array:
    """Σ of the weights of the losses, over the same with each as often as it counts."""
    weights = jnp.ones((call.steps, 1), call.loss_dtype) if call.mask is None else call.mask
    weights = weights[burn_in:]
    so_often = (weights * jnp.asarray(counts, weights.dtype)[:, None]).sum()
    return divide(weights.sum(), so_often)


def _relative_error(g_hat: Leaves, g: Leaves) -> jax.Array:
    """Of the sums over the sequences; leaves of `[B, …]`, as below."""
    return _ratio(_norm([(a - b).sum(0) for a, b in zip(g_hat, g, strict=True)]), _norm([b.sum(0) for b in g]))


def _cosine(g_hat: Leaves, g: Leaves) -> jax.Array:
    summed_hat, summed = ([a.sum(0) for a in leaves] for leaves in (g_hat, g))
    inner = jnp.stack([jnp.real(jnp.vdot(b, a)) for a, b in zip(summed_hat, summed, strict=True)]).sum()
    return _ratio(inner, _norm(summed_hat) * _norm(summed))


def _standard_error(g_hat: Leaves, g: Leaves) -> jax.Array:
    """Of the relative error, from those without one of the sequences."""
    batch = len(g[0])
    without_one = ([a.sum(0, keepdims=True) - a for a in leaves] for leaves in (g_hat, g))
    g_hat, g = ([a[:, None] for a in leaves] for leaves in without_one)
    errors = jax.vmap(_relative_error)(g_hat, g)
    return jnp.sqrt((batch - 1) * errors.var()) if batch > 1 else jnp.full((), jnp.nan, errors.dtype)


def _norm(leaves: Leaves) -> jax.Array:
    return jnp.sqrt(jnp.stack([jnp.square(jnp.abs(a)).sum() for a in leaves]).sum())


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, where 0 / 0 is 0."""
    return jnp.where((a == 0) & (b == 0), 0, a / jnp.where((a == 0) & (b == 0), 1, b))


def _check_horizons(horizons: Any, losses: Any) -> list[tuple[int, int]]:
    if isinstance(horizons, str) or not isinstance(horizons, Sequence | np.ndarray):
        raise TypeError(f"horizons: found {describe(horizons)}, expected a sequence of k, or of pairs (k1, k2)")
    if len(horizons) == 0:
        raise ValueError("horizons: found none, expected at least one k, or pair (k1, k2)")
    pairs = [tuple(h) if isinstance(h, tuple | list) else (h, h) for h in horizons]
    if odd := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"horizons: found {odd[0]}, expected pairs (k1, k2)")
    return [check_truncation(k1, k2, losses)[:2] for k1, k2 in pairs]


def _check_names(found: Sequence[str] | None, names: list[str]) -> None:
    if isinstance(found, str):
        raise TypeError(f"parameters: found {found!r}, expected a sequence of names")
    for name in found or ():
        if name not in names:
            raise ValueError(f"parameters: found {name!r}, expected names among {', '.join(map(repr, names))}")


# The same from the lag profile alone.


def estimated_bias(profile: Any) -> np.ndarray:
    """The relative bias of a horizon of k steps, as the decay of credit tells it.

        b_k = Σ_{j≥k} φ_j / Σ_{j≥0} φ_j,    φ_j = φ_K β^{j−K} for j > K

    This takes all steps to be alike, as much as they change the params, and credit at different lags to point the same
    way, so that norms add up; beyond the lags that were measured, credit is taken to go on decaying as in the later
    half of them. β is the slowest of the decays of the last half and the last quarter, by least squares in logarithms.

    Args:
        profile: φ, `[K + 1]`, as `lag_profile` returns it of the exact credit; at least 8 lags.

    Returns:
        b, `[K + 2]`, for horizons of 0 … K + 1 steps; b_0 is 1.

    Raises:
        ValueError: if the profile is not of this form, has NaN or infinity, or does not decay.

    Source:
        C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to control gradient
        bias", 2019, assumption (A-1), geometric decay for large lags, and the bound that follows from it.
    """
    return _estimated(profile)[0]


def suggest_k2(profile: Any, tolerance: float = 0.1, *, k1: int = 1) -> int:
    """The smallest k2 with an estimated relative bias of no more than the tolerance.

        min {k: b_k ≤ tolerance} + k1 − 1,    b_k as `estimated_bias` has it

    so that with `losses="newest"`, where a loss travels back at least k2 − k1 + 1 steps, all travel so far.

    That is a safe horizon rather than the shortest one. It takes norms of credit to add up, though what comes from
    different steps and examples partly cancels in the sum, more so at longer lags, where it is noise; and it compares
    the credit that is cut with all credit, not with the whole gradient, in which that of the readout is never cut. So
    the bias that is measured at this horizon is less, and shorter ones are enough (in the third notebook 6 and 26 steps
    are suggested, where of 1, 2, 4, 8, 16 … 2 and 16 are): `truncation_bias` measures it, where the exact gradient can
    be had, and `training.train_adaptively` by the gradients with several horizons.

    Args:
        profile: φ, `[K + 1]`, as `lag_profile` returns it of the exact credit; at least 8 lags. A horizon beyond them
            is suggested where the decay, gone on with, leads there.
        tolerance: the relative bias allowed, between 0 and 1.
        k1: that of the truncation.

    Raises:
        TypeError, ValueError: as `estimated_bias`; for a tolerance out of range, or a k1 that is no positive integer.

    Source:
        As `estimated_bias`.
    """
    k1 = check_truncation(k1, k1, "newest")[0]
    tolerance = check_tolerance(tolerance)
    bias, decay = _estimated(profile)
    enough = np.flatnonzero(bias <= tolerance)
    if len(enough):
        return int(enough[0]) + k1 - 1
    return len(bias) - 1 + math.ceil(math.log(tolerance / bias[-1]) / decay) + k1 - 1


def _estimated(profile: Any) -> tuple[np.ndarray, float]:
    """The estimated bias, and the logarithm of β."""
    phi = np.asarray(profile, np.float64)
    if phi.ndim != 1 or len(phi) < LEAST_LAGS:
        raise ValueError(f"profile: found shape {phi.shape}, expected [K + 1] with at least {LEAST_LAGS} lags")
    if not np.isfinite(phi).all():
        raise ValueError(f"profile: found NaN or infinity at lag {int((~np.isfinite(phi)).argmax())}, expected numbers")
    if (phi < 0).any() or not phi.any():
        raise ValueError("profile: found negative norms or nothing but zeros, expected norms of some credit")
    after = np.concatenate([[0.0], np.cumsum(phi[::-1])])[::-1]  # Σ_{j≥k} φ_j of those that were measured
    if phi[-1] == 0:  # credit that ends altogether
        return after / after[0], -math.inf
    decay = max(_slope(phi, len(phi) // 2), _slope(phi, 3 * len(phi) // 4))
    if decay >= 0:
        raise ValueError(
            f"profile: found no decay: over its last half and quarter credit changes by a factor of up to "
            f"{math.exp(decay):.3g} per lag; expected less than 1, without which no horizon is long enough. "
            "Measure more lags, or train with the exact gradient"
        )
    tail = phi[-1] * math.exp(decay) / -math.expm1(decay)
    return (after + tail) / (after[0] + tail), decay


def _slope(phi: np.ndarray, start: int) -> float:
    """Of log φ over the lags from `start` on, by least squares."""
    lags = np.arange(start, len(phi))
    logs = np.log(phi[start:], where=phi[start:] > 0, out=np.full(len(lags), -745.0))
    return float(np.polyfit(lags, logs, 1)[0])
