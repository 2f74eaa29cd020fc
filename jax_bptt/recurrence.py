"""`lax.scan` for recurrent models, with the library's backward pass: recurrences inside larger models.

A `jax.custom_vjp` around the forward and reverse passes: the cotangents of the outputs take the place that those of the
losses have in the gradient functions, and the cotangent of the last state is where δ begins.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.options import check_computation, check_if_truncated
from jax_bptt.engine import schedule
from jax_bptt.engine.flatten import Call, Objective, Recurrence, flatten_call, unflatten_like, unflatten_state
from jax_bptt.engine.forward import Checkpoints, Rows, read_rows, run_forward
from jax_bptt.engine.leaves import Leaves
from jax_bptt.engine.passes import run_reverse
from jax_bptt.engine.plan import Asked, Plan, choose_plan
from jax_bptt.engine.windows import join, vmap_leading, without_leading
from jax_bptt.model import Model, PyTree, Save, step_of


def unroll(
    model: Model,
    params: PyTree,
    state: PyTree,
    xs: PyTree,
    *,
    k1: int | None = None,
    k2: int | None = None,
    reset: Any = None,
    reset_state: PyTree = None,
    window: int | None = None,
    save: Save | None = None,
    parallel: int | None = None,
) -> tuple[PyTree, PyTree]:
    """Run a model over a sequence; its derivative is BPTT, exact or truncated, by the library's reverse scan.

        h_t, ŷ_t = step(θ, h_{t−1}, x_t),    t = 1 … T

    A replacement for `lax.scan` over a batched step, under any loss and inside any model. Without k1 and k2 its
    gradient is exact. With them the cotangent of the output at step t travels back as a loss at t does in
    `truncated_bptt` with `losses="newest"`, and the cotangent of the last state to the start of the last window.

    It is differentiable with respect to params, state, xs, `reset_state` and what the step closes over, in reverse
    mode: forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) raises JAX's error for a `custom_vjp`; there, use
    `lax.scan` over `jax.vmap(step, (None, 0, 0))`.

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`.
        params, state, xs: what it is run with; `state` of `[B, …]`, `xs` of `[T, B, …]`.
        k1, k2: steps from one window's end to the next, and steps that a window reaches back over; both or neither.
        reset, reset_state: as in the call of what `bptt` returns, but that the gradient reaches `reset_state`.
        window: steps in one window of exact BPTT, as for `bptt`.
        save: as for `bptt`.
        parallel: windows side by side, as for `truncated_bptt`.

    Returns:
        The state after the last step, a pytree of `[B, …]`, and the outputs, one of `[T, B, …]`.

    Raises:
        TypeError, ValueError: for an argument that is not of this form.

    Source:
        As `bptt` and `truncated_bptt`.
    """
    truncation = check_if_truncated(k1, k2)
    check_computation(save, window=window, parallel=parallel)
    call = check_call(step_of(model), None, Arguments(params, state, xs, reset=reset, reset_state=reset_state))
    scheduled = schedule.truncated(call.steps, *truncation) if truncation else schedule.exact(call.steps)

    # What the step closes over becomes an argument, so that a gradient with respect to it is possible. The passes close
    # over sizes alone: to close over arguments would keep tracers alive.
    examples = call.params, without_leading(call.state, 1), without_leading(call.xs, 2)
    pure, constants = jax.closure_convert(call.step, *examples)
    constants = [jnp.asarray(c) for c in constants]  # a Python number that is differentiated is a scalar from here on
    sizes = call._replace(
        step=lambda params, state, x: pure(params[0], state, x, *params[1]), **dict.fromkeys(Arguments._fields)
    )
    run = _with_passes(sizes, scheduled, Asked(window=window, save=save, lanes=parallel))
    given = Arguments((call.params, constants), call.state, call.xs, reset=call.reset, reset_state=call.reset_state)
    return run(given)


def _with_passes(
    sizes: Call, scheduled: schedule.Schedule, asked: Asked
) -> Callable[[Arguments], tuple[PyTree, PyTree]]:
    """State and outputs of the arguments that a call lacks; derived by the reverse pass."""

    def plan_of(recurrence: Recurrence) -> Plan:
        return choose_plan(scheduled, sizes.batch, recurrence.pullback.recomputation, **asked)

    @jax.custom_vjp
    def run(given: Arguments) -> tuple[PyTree, PyTree]:
        return forwards(given)[0]

    def forwards(given: Arguments) -> tuple[tuple[PyTree, PyTree], tuple[Arguments, Checkpoints]]:
        call = sizes._replace(**given._asdict())
        flat = flatten_call(call)
        recurrence, plan = flat.recurrence, plan_of(flat.recurrence)

        def read(rows: Rows, _: None) -> PyTree:
            return read_rows(recurrence, rows)

        passed = run_forward(recurrence, flat.state, flat.inputs, plan.windows, plan.save, emit=read)
        end, checkpoints, outputs = passed
        return (unflatten_state(call, end), join(outputs)), (given, checkpoints)

    def backwards(saved: tuple[Arguments, Checkpoints], cotangents: tuple[PyTree, PyTree]) -> tuple[Arguments]:
        given, checkpoints = saved
        flat = flatten_call(sizes._replace(**given._asdict()), (0, 2), wrt_reset_state=True)
        state_bar, outputs_bar = map(_present, cotangents)
        objective = Objective(_pull_given, outputs_bar, None, jnp.float32)
        got = run_reverse(flat, checkpoints, objective, state_bar, scheduled, plan_of(flat.recurrence))
        return (
            Arguments(
                flat.pull_weights(got.weights_bar),
                unflatten_like(given.state, got.start_bar),
                unflatten_like(given.xs, got.xs_bar),
                reset=unflatten_like(given.reset, [None] * (given.reset is not None)),
                reset_state=unflatten_like(given.reset_state, [] if given.reset_state is None else got.reset_bar),
            ),
        )

    run.defvjp(forwards, backwards)
    return run


def _pull_given(outputs: PyTree, cotangents: Leaves, mask: jax.Array | None, axes: int) -> tuple[jax.Array, Leaves]:
    """Cotangents of outputs that are given, instead of those of losses, of which there are none."""
    if mask is not None:
        keep = vmap_leading(lambda m, c: jnp.where(m != 0, c, jnp.zeros_like(c)), 0, [None] * axes)
        cotangents = jax.tree.map(lambda c: keep(mask, c), cotangents)
    return jnp.zeros((), jnp.float32), cotangents


def _present(tree: PyTree) -> Leaves:
    """The leaves, with None for the zeros of what has no derivative."""
    return [None if leaf.dtype == jax.dtypes.float0 else leaf for leaf in jax.tree.leaves(tree)]
