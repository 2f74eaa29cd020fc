"""The forward pass: the states of a window, and over all windows what the reverse pass needs of them.

Per window, the inputs of all rows are projected at once; the loop over time steps holds the transition alone. Saved
is either the state before every step (`save="states"`) or only the one before a window's first step
(`save="boundaries"`), from which the reverse pass runs the window again.
"""

from typing import Any

import jax

from jax_bptt.split import Leaves, Parts
from jax_bptt.windows import PerWindow, Windows, fold, scan, unfold


def run_window(parts: Parts, weights: Leaves, start: Leaves, x: Leaves, *, effects: bool) -> tuple[Leaves, Leaves]:
    """The states of one window.

    Args:
        start: the state before its first step, leaves of `[B, …]`.
        x: its inputs, leaves of `[W, B, …]`.
        effects: whether the step's side effects are to be seen.

    Returns:
        The state after its last step, `[B, …]`, and that before every step, `[W, B, …]`.
    """
    batch = start[0].shape[0]
    drive = unfold(jax.vmap(parts.project, in_axes=(None, 0))(weights, fold(x)), batch)
    transition = jax.vmap(parts.transition_with_effects if effects else parts.transition, in_axes=(None, 0, 0))

    def step(state, drive_t):
        return transition(weights, state, drive_t), state

    return jax.lax.scan(step, start, drive, length=x[0].shape[0])


def forward(
    parts: Parts, weights: Leaves, state: Leaves, xs: Leaves, windows: Windows, save: str
) -> tuple[Leaves, PerWindow]:
    """The state after the last step, and what is saved of each window."""

    def window(start: Leaves, x: Leaves, _: Any) -> tuple[Leaves, Leaves]:
        end, before = run_window(parts, weights, start, x, effects=True)
        return end, before if save == "states" else start

    return scan(window, state, xs, windows)
