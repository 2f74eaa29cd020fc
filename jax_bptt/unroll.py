"""`lax.scan` for recurrent models, with the library's backward pass: recurrences inside larger models.

A `jax.custom_vjp` around the forward and reverse passes: the cotangents of the outputs take the place that those of the
losses have in the gradient functions, and the cotangent of the last state is where δ begins.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt import problem
from jax_bptt.calls import check_call
from jax_bptt.forward import default_save, forward
from jax_bptt.grid import Grid
from jax_bptt.laps import default_lanes, reverse_truncated
from jax_bptt.model import Model, step_of
from jax_bptt.options import SAVES, check_choice, check_count, check_if_truncated
from jax_bptt.reverse import Objective, reverse
from jax_bptt.split import Leaves, combine
from jax_bptt.windows import Windows, default_size, example, join, over


def unroll(
    model: Model,
    params: Any,
    state: Any,
    xs: Any,
    *,
    k1: int | None = None,
    k2: int | None = None,
    reset: Any = None,
    reset_state: Any = None,
    window: int | None = None,
    save: str | None = None,
    parallel: int | None = None,
) -> tuple[Any, Any]:
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
    step = step_of(model)
    k1, k2, _ = check_if_truncated(k1, k2) or (None, None, None)
    for name, count in (("window", window), ("parallel", parallel)):
        if count is not None:
            check_count(name, count)
    if save is not None:
        check_choice("save", save, SAVES)
    call = check_call(step, None, (), params, state, xs, reset=reset, reset_state=reset_state)
    size = k1 or window or default_size(call.steps, call.batch, save)
    windows = Windows(call.steps, size if k1 else min(call.steps, size))

    # What the step closes over becomes an argument, so that a gradient with respect to it is possible. The passes close
    # over sizes alone: to close over arguments would keep tracers alive.
    sizes = call._replace(params=None, state=None, xs=None, reset=None, reset_state=None)
    pure, constants = jax.closure_convert(step, call.params, example(call.state, 1), example(call.xs, 2))

    def pure_step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return pure(params[0], state, x, *params[1])

    @jax.custom_vjp
    def unrolled(params, state, xs, reset, reset_state):
        return forwards(params, state, xs, reset, reset_state)[0]

    def forwards(params, state, xs, reset, reset_state):
        of = sizes._replace(params=params, state=state, xs=xs, reset=reset, reset_state=reset_state)
        of_call = problem.problem(pure_step, of, (), 0)
        kept = save or default_save(of_call.recurrence)
        end, _, saved, outputs = forward(of_call.recurrence, of_call.state, of_call.xs, windows, kept, outputs=True)
        return (problem.state_of(of, end), join(outputs)), (
            params,
            state,
            xs,
            reset,
            reset_state,
            end,
            saved,
        )

    def backwards(residuals, cotangents):
        params, state, xs, reset, reset_state, end, saved = residuals
        of = sizes._replace(params=params, state=state, xs=xs, reset=reset, reset_state=reset_state)
        of_call = problem.problem(pure_step, of, (0, 2), 0)
        state_bar, outputs_bar = (_present(tree) for tree in cotangents)
        delta = combine(state_bar + [None] * of_call.constants, problem.zero_delta(end))
        objective = Objective(_pull_given, outputs_bar, None, jnp.float32)
        if k1 is None or k2 is None:
            (_, weights_bar, start), xs_bar = reverse(
                of_call.recurrence,
                saved,
                of_call.xs,
                objective,
                delta,
                windows,
                of_call.wanted,
                lambda window: window.xs,
            )
            xs_bar = join(xs_bar)
        else:
            grid = Grid(sizes.steps, k1, k2, "newest")
            lanes = min(grid.blocks, parallel or default_lanes(grid, sizes.batch))
            _, weights_bar, start, xs_bar = reverse_truncated(
                of_call.recurrence,
                end,
                saved,
                of_call.xs,
                objective,
                grid,
                lanes,
                of_call.wanted,
                delta,
                of_call.constants,
            )
        n_state = jax.tree.structure(state).num_leaves
        return (
            of_call.pull_weights(weights_bar),
            problem.like(state, start[:n_state]),
            problem.like(xs, xs_bar[: jax.tree.structure(xs).num_leaves]),
            problem.like(reset, [None] * (reset is not None)),
            problem.like(reset_state, start[n_state:]),
        )

    unrolled.defvjp(forwards, backwards)
    constants = [jnp.asarray(c) for c in constants]  # a Python number that is differentiated is a scalar from here on
    return unrolled((call.params, constants), call.state, call.xs, call.reset, call.reset_state)


def _pull_given(outputs: Any, cotangents: Any, mask: jax.Array | None, axes: int) -> tuple[jax.Array, Leaves]:
    """Cotangents of outputs that are given, instead of those of losses."""
    rows = jax.tree.leaves(outputs)[0].shape[:axes]
    if mask is not None:
        keep = over(lambda m, c: jnp.where(m != 0, c, jnp.zeros_like(c)), 0, axes)
        cotangents = jax.tree.map(lambda c: keep(mask, c), cotangents)
    return jnp.zeros(rows, jnp.float32), cotangents


def _present(tree: Any) -> Leaves:
    """The leaves, with None for the zeros of what has no derivative."""
    return [None if leaf.dtype == jax.dtypes.float0 else leaf for leaf in jax.tree.leaves(tree)]
