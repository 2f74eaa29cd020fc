"""The forward pass: the states of a window, and over all windows what the reverse pass needs of them.

Per window, the inputs of all rows are projected at once; the loop over time steps holds the transition alone. Saved
is either the state before every step (`save="states"`) or only the one before a window's first step
(`save="boundaries"`), from which the reverse pass runs the window again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class Forward(NamedTuple):
    """What the forward pass over all windows leaves."""

    end: Leaves
    """The state after the last step, leaves of `[B, …]`."""
    marked: Leaves
    """The state after the marked number of steps."""
    stored: PerWindow
    """Of each window the state before every step, `[W, B, …]`, or before the first one, `[B, …]`."""
    outputs: PerWindow
    """Of each window the outputs, `[W, B, …]`, if they are wanted."""


def forward(
    parts: Parts,
    weights: Leaves,
    state: Leaves,
    xs: Leaves,
    windows: Windows,
    save: str,
    *,
    mark: int | None = None,
    outputs: bool = False,
) -> Forward:
    """Run over all windows.

    Args:
        mark: after how many steps the state is to be told; all of them where None.
        outputs: whether the outputs are wanted.
    """
    batch = state[0].shape[0]
    mark = windows.steps if mark is None else mark

    def window(carry: tuple[Leaves, Leaves], timed: tuple[Leaves, jax.Array], _: Any) -> tuple[Any, Any]:
        (start, marked), (x, times) = carry, timed
        end, before = run_window(parts, weights, start, x, effects=True)
        if mark < windows.steps:
            place = mark - times[0]
            here = (place >= 0) & (place < len(times))
            there = jax.tree.map(lambda b: jax.lax.dynamic_index_in_dim(b, place, keepdims=False), before)
            marked = jax.tree.map(lambda a, b: jnp.where(here, a, b), there, marked)
        made = unfold(read_rows(parts, weights, rows_of(parts, (end, before), x)), batch) if outputs else None
        return (end, marked), (before if save == "states" else start, made)

    (end, marked), out = scan(window, (state, state), (xs, jnp.arange(windows.steps)), windows)
    full, last = (w or (None, None) for w in out)
    return Forward(
        end, marked if mark < windows.steps else end, PerWindow(full[0], last[0]), PerWindow(full[1], last[1])
    )


class Rows(NamedTuple):
    """The steps of a stretch of time, of all examples; leaves of `[R, …]`."""

    before: Leaves
    after: Leaves
    """Only those that the readout reads; others are of no use."""
    x: Leaves


def rows_of(parts: Parts, states: tuple[Leaves, Leaves], x: Leaves) -> Rows:
    """The rows of a window, from the state at its end, that before every step, and its inputs."""
    end, before = states
    after = [
        jnp.concatenate([b[1:], e[None]]) if read else b
        for b, e, read in zip(before, end, parts.reads_after, strict=True)
    ]
    return Rows(fold(before), fold(after), fold(x))


def read_rows(parts: Parts, weights: Leaves, rows: Rows) -> Any:
    """The outputs of all rows."""
    return jax.vmap(parts.readout, in_axes=(None, 0, 0, 0))(weights, rows.after, rows.x, rows.before)
