"""The forward pass: the states of a window, and over all windows what the reverse pass needs of them.

Per window, the inputs of all rows are projected at once; the loop over time steps holds the transition alone. Saved is,
of every step, the state before it and what the pullback needs beside the states (`save="dots"`); the states alone
(`save="states"`); or only the state before a window's first step (`save="boundaries"`), from which the reverse pass
runs the window again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.pullback import Pullback, split_pullback
from jax_bptt.split import Leaves, Parts
from jax_bptt.windows import PerWindow, Windows, example, fold, scan, unfold


class Recurrence(NamedTuple):
    """A step, as it is run and differentiated: its parts, the weights that it runs with, the transition's pullback."""

    parts: Parts
    weights: Leaves
    arranged: Leaves
    """The weights as the forward loop reads them."""
    pullback: Pullback


def recurrence(parts: Parts, weights: Leaves, state: Leaves, xs: Leaves) -> Recurrence:
    """Put them together; `state` and `xs` tell shapes: leaves of `[B, …]` and `[T, B, …]`."""
    drive = jax.eval_shape(parts.project, weights, example(xs, 2))
    pullback = split_pullback(
        parts.transition_with_effects,
        weights,
        example(state, 1),
        drive,
        parts.costly,
        arranged=state[0].shape[0] >= ARRANGE_FROM,
    )
    return Recurrence(parts, weights, pullback.arrange(weights), pullback)


ARRANGE_FROM = 16
"""Examples from which on the loop gets a transposed copy of its weights, which is then small beside the states."""


def default_save(recurrence: Recurrence) -> str:
    """What the forward pass saves, where the user leaves it to us: "dots" where they are worth keeping, or "states"."""
    return "dots" if recurrence.pullback.worth_keeping else "states"


class Steps(NamedTuple):
    """What is known of the steps of a window beside the inputs; leaves of `[W, B, …]`."""

    before: Leaves
    """The state before each step."""
    kept: Leaves
    """What the pullback needs beside the states."""


def run_window(recurrence: Recurrence, start: Leaves, x: Leaves, *, effects: bool) -> tuple[Leaves, Steps]:
    """The states of one window.

    Args:
        recurrence: the step.
        start: the state before its first step, leaves of `[B, …]`.
        x: its inputs, leaves of `[W, B, …]`.
        effects: whether the step's side effects are to be seen.

    Returns:
        The state after its last step, `[B, …]`, and the steps.
    """
    pullback = recurrence.pullback
    drive = unfold(project_rows(recurrence, fold(x)), start[0].shape[0])
    advance = pullback.advance_with_effects if effects else pullback.advance_arranged
    advance = jax.vmap(advance, in_axes=(None, 0, 0))

    def step(state, drive_t):
        after, kept = advance(recurrence.arranged, state, drive_t)
        return after, Steps(state, kept)

    return jax.lax.scan(step, start, drive, length=x[0].shape[0])


def restore(recurrence: Recurrence, stored: Any, x: Leaves, save: str) -> Steps:
    """The steps of a window, from what was saved of it: as it is, or computed for all rows at once, or run again."""
    if save == "dots":
        return stored
    if save == "boundaries":
        return run_window(recurrence, stored, x, effects=False)[1]
    before, batch = fold(stored), stored[0].shape[1]
    advance = jax.vmap(recurrence.pullback.advance, in_axes=(None, 0, 0))
    _, kept = advance(recurrence.weights, before, project_rows(recurrence, fold(x)))
    return Steps(stored, unfold(kept, batch))


def project_rows(recurrence: Recurrence, x: Leaves) -> Leaves:
    """What the transition takes from the inputs of all rows."""
    return jax.vmap(recurrence.parts.project, in_axes=(None, 0))(recurrence.weights, x)


class Forward(NamedTuple):
    """What the forward pass over all windows leaves."""

    end: Leaves
    """The state after the last step, leaves of `[B, …]`."""
    marked: Leaves
    """The state after the marked number of steps."""
    stored: PerWindow
    """Of each window its `Steps`, the state before every step, `[W, B, …]`, or before the first one, `[B, …]`."""
    outputs: PerWindow
    """Of each window the outputs, `[W, B, …]`, if they are wanted."""


def forward(
    recurrence: Recurrence,
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
        end, steps = run_window(recurrence, start, x, effects=True)
        if mark < windows.steps:
            place = mark - times[0]
            here = (place >= 0) & (place < len(times))
            there = jax.tree.map(lambda b: jax.lax.dynamic_index_in_dim(b, place, keepdims=False), steps.before)
            marked = jax.tree.map(lambda a, b: jnp.where(here, a, b), there, marked)
        made = None
        if outputs:
            made = unfold(read_rows(recurrence.parts, recurrence.weights, rows_of(end, steps, x)), batch)
        return (end, marked), ({"dots": steps, "states": steps.before, "boundaries": start}[save], made)

    (end, marked), out = scan(window, (state, state), (xs, jnp.arange(windows.steps)), windows)
    full, last = (w or (None, None) for w in out)
    return Forward(
        end, marked if mark < windows.steps else end, PerWindow(full[0], last[0]), PerWindow(full[1], last[1])
    )


class Rows(NamedTuple):
    """The steps of a stretch of time, of all examples; leaves of `[R, …]`."""

    before: Leaves
    after: Leaves
    kept: Leaves
    x: Leaves


def rows_of(end: Leaves, steps: Steps, x: Leaves) -> Rows:
    """The rows of a window, from the state at its end, its steps, and its inputs."""
    after = [jnp.concatenate([b[1:], e[None]]) for b, e in zip(steps.before, end, strict=True)]
    return Rows(*map(fold, (steps.before, after, steps.kept, x)))


def read_rows(parts: Parts, weights: Leaves, rows: Rows) -> Any:
    """The outputs of all rows."""
    return jax.vmap(parts.readout, in_axes=(None, 0, 0, 0))(weights, rows.after, rows.x, rows.before)
