"""How far back the credit of each loss travels: ‖∂ℓ_s/∂h_{s−k}‖ for all losses s and lags k.

    g_{s,0} = ∂ℓ_s/∂h_s,    g_{s,k+1} = (∂h_{s−k}/∂h_{s−k−1})ᵀ g_{s,k}

The losses are lanes side by side, as the windows of truncation are: the pullbacks are linearised once, for all steps,
and one pass of the recursion moves the credit of all losses one step further back. K lags take K such passes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.checks.calls import over_sequences
from jax_bptt.checks.options import check_count, check_if_truncated, check_options
from jax_bptt.checks.trees import check_finite
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call
from jax_bptt.engine.flatten import flatten_call, unflatten_state
from jax_bptt.engine.forward import allocate, rows_of, run_window
from jax_bptt.engine.leaves import Leaves, add, divide, where, zeros
from jax_bptt.engine.objective import objective_of
from jax_bptt.engine.passes import run_burn_in
from jax_bptt.engine.window_gradient import credit_from_losses, linearise
from jax_bptt.model import Loss, Losses, Model, OverSequences, step_of

LARGEST = 2048
"""Steps up to which `credit_matrix` is made: its passes, and its entries, are T² in number."""


def lag_profile(
    model: Model,
    loss: Loss,
    lags: int,
    *,
    k1: int | None = None,
    k2: int | None = None,
    losses: Losses = "newest",
    per_step: bool = False,
    burn_in: int = 0,
) -> OverSequences[jax.Array]:
    """The credit of a loss to the states before it, by how many steps it travels back.

        φ_k = mean over s of ‖∂ℓ_s/∂h_{s−k}‖,    k = 0 … K

    The norm is that of one example, over all leaves of its state; the mean is over the losses s that have a state k
    steps before them (h_1 is the first one), and over the batch. Each lag takes one pass over all steps at once, whose
    linearisation is in memory as a whole: of long sequences take a stretch.

    Args:
        model, loss, burn_in: as for `jax_bptt.bptt`.
        lags: K, less than the steps of the sequences.
        k1, k2, losses: count only the credit that truncation hands back, as often as it does; as for
            `jax_bptt.truncated_bptt`. Both k1 and k2, or neither, for the exact credit.
        per_step: whether to tell it of each loss by itself.

    Returns:
        `profile(params, state, xs, targets, mask=None, reset=None, reset_state=None)`, of the arguments of the
        function that `bptt` returns, where `mask` are the weights of the losses in the means. It returns `[K + 1]`, or
        with `per_step` `[T, K + 1]`, which is NaN where there is no state so far back.

    Raises:
        TypeError, ValueError: for an option or argument that is not of this form, and, outside of `jax.jit`, for
            states that are not finite.

    Source:
        C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to control gradient
        bias", 2019.
    """
    step = step_of(model)
    burn_in, _ = check_options(loss, "sum", burn_in)
    lags = check_count("lags", lags, at_least=0)
    truncation = check_if_truncated(k1, k2, losses)

    @over_sequences(step, loss, burn_in=burn_in)
    def profile(call: Call) -> jax.Array:
        steps = call.steps - burn_in
        if lags >= steps:
            raise ValueError(f"lags: found {lags}, expected less than the {steps} time steps after the burn-in")
        norms, weights, there = credit_by_lag(call, lags, burn_in, truncation)
        if per_step:
            return jnp.where(there, divide(norms, weights[:, None]), jnp.nan)
        return divide(norms.sum(0), (weights[:, None] * there).sum(0))

    return profile


def credit_matrix(
    model: Model,
    loss: Loss,
    *,
    k1: int | None = None,
    k2: int | None = None,
    losses: Losses = "newest",
    burn_in: int = 0,
) -> OverSequences[jax.Array]:
    """The credit of every loss to every state before it.

        M_st = mean over the batch of ‖∂ℓ_s/∂h_t‖,    0 for t > s

    Args:
        model, loss, k1, k2, losses, burn_in: as for `lag_profile`; what truncation cuts is 0.

    Returns:
        `matrix(params, state, xs, targets, mask=None, reset=None, reset_state=None)`, of the arguments of the function
        that `bptt` returns; `mask` are the weights of the losses in the mean. It returns `[T, T]`: a row for each loss,
        a column for each state.

    Raises:
        TypeError, ValueError: as `lag_profile`; for more than 2,048 steps.

    Source:
        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", 2013, equation
        4, of which these are the terms.
    """
    step = step_of(model)
    burn_in, _ = check_options(loss, "sum", burn_in)
    truncation = check_if_truncated(k1, k2, losses)

    @over_sequences(step, loss, burn_in=burn_in)
    def matrix(call: Call) -> jax.Array:
        steps = call.steps - burn_in
        if steps > LARGEST:
            raise ValueError(f"xs: found {steps} time steps, expected at most {LARGEST} for a matrix; see lag_profile")
        norms, weights, _ = credit_by_lag(call, steps - 1, burn_in, truncation)
        loss_step, state_step = np.indices((steps, steps))
        by_state = norms[loss_step, np.maximum(loss_step - state_step, 0)]
        return jnp.where(state_step <= loss_step, divide(by_state, weights[:, None]), 0)

    return matrix


def credit_by_lag(
    call: Call, lags: int, burn_in: int, truncation: tuple[int, int, Losses] | None
) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Σ over the batch of weight · ‖∂ℓ_s/∂h_{s−k}‖, and what it takes to make means of it.

    Args:
        truncation: k1, k2 and losses, where only what truncation hands back is to count.

    Returns:
        The sums, `[T, K + 1]`, 0 where there is no state k steps before s; Σ of the weights, `[T]`; and where there is
        such a state, `[T, K + 1]`.
    """
    scheduled = schedule.exact(call.steps, burn_in)
    flat, _ = run_burn_in(flatten_call(call), scheduled)
    recurrence, inputs, steps = flat.recurrence, flat.inputs, scheduled.steps
    _, trajectory = run_window(recurrence, flat.state, inputs, allocate(recurrence, steps), 0, steps, effects=True)
    rows = rows_of(recurrence, flat.state, trajectory, inputs)
    check_finite(unflatten_state(call, rows.after))

    objective = objective_of(call, "sum", scheduled)
    credit = credit_from_losses(recurrence, rows, objective, flat.wrt)
    coefficients, fixed = linearise(recurrence, rows), recurrence.pullback.fix(recurrence.weights)
    pull = recurrence.over_rows(recurrence.pullback.pull, (None, 0, 0), steps)

    def norms(delta: Leaves) -> jax.Array:
        squares = [jnp.square(jnp.abs(d)).reshape(steps, *call.batch, -1).sum(-1) for d in delta if d is not None]
        return jnp.sqrt(sum(squares, jnp.zeros((steps, *call.batch), objective.zero.dtype))).sum(-1)

    def one_step_back(delta: Leaves, lag: jax.Array | int, to_before: Leaves) -> Leaves:
        passed = jnp.maximum(jnp.arange(steps) - lag, 0)
        delta = add(pull(fixed, jax.tree.map(lambda r: r[passed], coefficients), delta), to_before)
        return delta if inputs.reset is None else where(~inputs.reset[passed], delta)

    at_once = add(zeros((steps,), recurrence.with_delta(flat.state)), credit.to_after)
    _, of_lags = jax.lax.scan(
        lambda delta, lag: (one_step_back(delta, lag, [None] * len(delta)), norms(delta)),
        one_step_back(at_once, 0, credit.to_before),
        jnp.arange(1, lags + 1),
    )
    there = np.arange(steps)[:, None] >= np.arange(lags + 1)
    windows = there if truncation is None else schedule.Grid(steps, *truncation).reaches(lags)
    by_lag = jnp.concatenate([norms(at_once)[None], of_lags]).T
    weights = (
        jnp.ones((steps, *call.batch), objective.zero.dtype) if objective.mask is None else jnp.abs(objective.mask)
    )
    return jnp.where(there, by_lag * windows, 0), weights.sum(-1), there
