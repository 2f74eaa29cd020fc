"""The passes: what a schedule says of a call, computed as a plan says.

    forward pass    first window to last      states, and what is saved of them
    reverse pass    last window to first      loss, δ, the cotangents of weights, first state and inputs

`backpropagate` is the whole of it: burn-in, forward pass, reverse pass. Every gradient of the library is this one with
another schedule and another pick of its results; `unroll` runs the two passes apart.
"""

import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax

from jax_bptt.engine.call import Call, vary_data
from jax_bptt.engine.call_plan import plan_of
from jax_bptt.engine.flatten import (
    DELTA,
    FlatCall,
    Wanted,
    flatten_call,
    unflatten_gradients,
    unflatten_like,
    unflatten_state,
)
from jax_bptt.engine.forward import Checkpoints, rematerialise, rows_of, run_forward, state_after
from jax_bptt.engine.leaves import Leaves, add, combine, zeros
from jax_bptt.engine.objective import Objective, objective_of
from jax_bptt.engine.outer_products import from_wide, to_wide, wide_zeros
from jax_bptt.engine.plan import Asked, Plan, ask_alone, choose_windows, on_gpu
from jax_bptt.engine.platforms import by_platform
from jax_bptt.engine.schedule import Schedule, exact
from jax_bptt.engine.truncation.in_turn import sum_in_turn
from jax_bptt.engine.truncation.reverse_truncated import sum_of_windows
from jax_bptt.engine.whole_steps import gradient_of_whole
from jax_bptt.engine.window_gradient import Gradient, gradient_of_window
from jax_bptt.engine.windows import join, scan_windows
from jax_bptt.model import PyTree, Reduction, Save


def value_and_gradient(
    call: Call,
    schedule: Schedule,
    argnums: int | Sequence[int] = 0,
    *,
    reduction: Reduction = "sum",
    **asked: Unpack[Asked],
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """The loss of a call, the state that the schedule returns, and the gradient, in the structures of the user."""
    several = (argnums,) if isinstance(argnums, int) else argnums
    wanted = Wanted(params=0 in several, state=1 in several, xs=2 in several)
    flat, state, got = backpropagate(call, schedule, wanted, reduction=reduction, **asked)
    params_bar = flat.pull_weights(got.weights_bar)
    grads = unflatten_gradients(call, argnums, schedule.burn_in, params_bar, got.start_bar, got.xs_bar)
    return (got.loss.astype(call.loss_dtype), unflatten_state(call, state)), grads


def backpropagate(
    call: Call,
    schedule: Schedule,
    wanted: Wanted = DELTA,
    *,
    deltas: bool = False,
    reduction: Reduction = "sum",
    **asked: Unpack[Asked],
) -> tuple[FlatCall, Leaves, Gradient]:
    """What is differentiated, the state that the schedule returns, and the gradient.

    Args:
        wanted: with respect to what; that of state is δ of every one.
        deltas: whether δ of every state is wanted, of exact BPTT.
        asked: what the user asked of the plan.
    """
    flat, state = run_burn_in(flatten_call(call, wanted).unrolled(asked.get("unroll")), schedule)
    ahead = schedule.returned - schedule.burn_in
    may_be_whole = call.mask is None and schedule.counts is None and ahead == schedule.steps and not deltas
    plan = plan_of(flat, schedule, call.reads, may_be_whole, **asked)
    objective = objective_of(call, reduction, schedule, derive=not plan.whole)
    if plan.whole:
        of_whole = functools.partial(gradient_of_whole, vary_data(call))
        if schedule.grid is None:
            end, got = of_whole(flat, objective)
        else:
            end, got = sum_in_turn(flat, objective, schedule.grid, of_whole, flat.wrt_params)
        return flat._replace(pull_weights=lambda bars: unflatten_like(call.params, bars)), end, got
    returned = state is not None or ahead == schedule.steps
    grid = schedule.grid if schedule.grid is not None and schedule.grid.alone else None
    in_turn = grid if plan.lanes == 1 and returned else None

    if in_turn is not None:
        alone = functools.partial(gradient_alone, save=asked.get("save"))
        end, got = sum_in_turn(flat, objective, in_turn, alone, flat.wrt.weights)
        return flat, end if state is None else state, got

    def run(plan: Plan) -> tuple[Leaves, Gradient]:
        end, checkpoints, _ = run_forward(flat.recurrence, flat.state, flat.inputs, plan.windows, plan.save)
        got = run_reverse(flat, checkpoints, objective, [None] * len(end), schedule, plan, deltas=deltas)
        if state is None and ahead < schedule.steps:
            end = state_after(flat.recurrence, checkpoints, flat.inputs, plan.windows, ahead)
        return end if state is None else state, got

    recurrence = flat.recurrence
    there = on_gpu(
        plan,
        recurrence.rows,
        recurrence.bodies.gpu,
        is_exact=schedule.grid is None,
        solvable=recurrence.solvable,
        **asked,
    )
    return flat, *by_platform(run, plan, there)


def gradient_alone(flat: FlatCall, objective: Objective, save: Save | None) -> tuple[Leaves, Gradient]:
    """The state after the steps of a window that is run alone, and their exact gradient."""
    scheduled, recurrence = exact(flat.inputs.steps), flat.recurrence
    alone = ask_alone(scheduled.steps, recurrence.rows, recurrence.parts.opaque, save)
    plan = plan_of(flat, scheduled, may_be_whole=False, weighed=False, **alone)

    def run(plan: Plan) -> tuple[Leaves, Gradient]:
        end, checkpoints, _ = run_forward(recurrence, flat.state, flat.inputs, plan.windows, plan.save)
        return end, run_reverse(flat, checkpoints, objective, [None] * len(end), scheduled, plan)

    there = on_gpu(plan, recurrence.rows, recurrence.bodies.gpu, is_exact=False, save=save)
    return by_platform(run, plan, there)


def run_burn_in(flat: FlatCall, schedule: Schedule) -> tuple[FlatCall, Leaves | None]:
    """What is left after the burn-in; and the state that is returned, if that is one of the burn-in."""
    if not schedule.burn_in:
        return flat, None
    inputs = jax.tree.map(lambda a: a[: schedule.burn_in], flat.inputs)
    windows = choose_windows(schedule.burn_in, flat.recurrence.rows)
    end, checkpoints, _ = run_forward(flat.recurrence, flat.state, inputs, windows, "boundaries")
    state = end if schedule.returned == schedule.burn_in else None
    if schedule.returned < schedule.burn_in:
        state = state_after(flat.recurrence, checkpoints, inputs, windows, schedule.returned)
    return flat.after(schedule.burn_in, end), state


def run_reverse(
    flat: FlatCall,
    checkpoints: Checkpoints,
    objective: Objective,
    delta: Leaves,
    schedule: Schedule,
    plan: Plan,
    *,
    deltas: bool = False,
) -> Gradient:
    """The reverse pass over the steps after the burn-in.

    Args:
        delta: a cotangent of the state after the last step, leaves of `[B, …]`; None is zero.
        deltas: whether δ of every state is wanted, of exact BPTT.
    """
    recurrence, wrt = flat.recurrence, flat.wrt
    delta = recurrence.with_delta(delta)
    if schedule.grid is not None:
        return sum_of_windows(flat, checkpoints, objective, delta, schedule.grid, plan.lanes)

    def window(carry: Any, timed: Any, start: Leaves, size: int) -> tuple[Any, Any]:
        """δ is handed on to the window before."""
        loss, weights_bar, reset_bar, delta = carry
        inputs, targets, mask, saved = timed
        rows = rows_of(recurrence, start, rematerialise(recurrence, start, saved, inputs, size), inputs)
        of_window = objective._replace(targets=targets, mask=mask)
        gradient = gradient_of_window(recurrence, rows, of_window, delta, wrt, size)
        weights_bar = add(weights_bar, to_wide(gradient.weights_bar))
        carry = loss + gradient.loss, weights_bar, add(reset_bar, gradient.reset_bar), gradient.start_bar
        return carry, (gradient.deltas if deltas else [], gradient.xs_bar)

    timed = flat.inputs, objective.targets, objective.mask, checkpoints.trajectory
    delta = combine(delta, zeros((), recurrence.with_delta(flat.state)))
    carry = objective.zero, wide_zeros(wrt.weights), zeros((), wrt.reset_to), delta
    carry, out = scan_windows(window, carry, timed, plan.windows, stored=checkpoints.starts, reverse=True)
    loss, weights_bar, reset_bar, start_bar = carry
    return Gradient(loss, from_wide(weights_bar, wrt.weights), start_bar, reset_bar, *join(out))
