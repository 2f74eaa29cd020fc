"""Truncated BPTT of windows that meet, k1 = k2, one after the other: a window is a sequence, its gradient exact.

Each begins with the last state of the one before it, a constant, and is run forwards and backwards before the next, so
that the memory is that of one. `reverse_truncated` runs windows side by side: those that overlap, those that would be
of too few rows alone, and those of `scan` and `unroll`, which run forwards before anything comes back.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jax_bptt.engine.flatten import FlatCall
from jax_bptt.engine.leaves import Leaves, accumulators, add, where, zeros
from jax_bptt.engine.objective import Objective
from jax_bptt.engine.schedule import Grid
from jax_bptt.engine.window_gradient import Gradient
from jax_bptt.engine.windows import Windows, join, scan_windows


def sum_in_turn(
    flat: FlatCall,
    objective: Objective,
    grid: Grid,
    gradient_of: Callable[[FlatCall, Objective], tuple[Leaves, Gradient]],
    weights: Leaves,
) -> tuple[Leaves, Gradient]:
    """The state after the last step, and the sum of the gradients of all windows.

    Args:
        grid: one of windows that are `alone`.
        gradient_of: the state after the steps of a window, and their exact gradient.
        weights: with respect to what it is, beside state, inputs, and what states are reset to.
    """

    def window(carry: Any, timed: Any, _: None, __: int) -> tuple[Any, Leaves]:
        (state, loss, weights_bar, start_bar, reset_bar), (inputs, targets, mask, is_first) = carry, timed
        of_window = objective._replace(targets=targets, mask=mask)
        state, got = gradient_of(flat._replace(state=state, inputs=inputs), of_window)
        weights_bar, reset_bar = add(weights_bar, got.weights_bar), add(reset_bar, got.reset_bar)
        start_bar = add(start_bar, where(is_first[0], got.start_bar))
        return (state, loss + got.loss, weights_bar, start_bar, reset_bar), got.xs_bar

    start_bar, reset_bar = zeros((), flat.recurrence.with_delta(flat.state)), zeros((), flat.wrt.reset_to)
    carry = flat.state, objective.zero, accumulators(weights), start_bar, reset_bar
    timed = flat.inputs, objective.targets, objective.mask, jnp.arange(grid.steps) == 0
    (end, loss, weights_bar, start_bar, reset_bar), xs_bar = scan_windows(
        window, carry, timed, Windows(grid.steps, grid.k1)
    )
    return end, Gradient(loss, weights_bar, start_bar, reset_bar, [], join(xs_bar))
