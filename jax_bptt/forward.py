"""The forward pass: the states of a window, and over all windows what the reverse pass needs of them.

Per window, the inputs of all rows are projected at once; the loop over time steps holds the transition alone. Saved is
the state before each window's first step, and of every step the state after it and what the pullback needs beside the
states (`save="dots"`), or the state alone (`save="states"`), or nothing (`save="boundaries"`): then the reverse pass
runs the window again.

What is saved of a step is written in its place among that of all steps, in arrays of `[T, B, …]` that the loops over
windows and over steps carry: stacked by each of the two loops, it would be written three times.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.pullback import Pullback, split_pullback
from jax_bptt.split import Leaves, Parts
from jax_bptt.windows import PerWindow, Windows, example, over, scan


class Recurrence(NamedTuple):
    """A step, as it is run and differentiated: its parts, the weights that it runs with, the transition's pullback."""

    parts: Parts
    weights: Leaves
    arranged: Leaves
    """The weights as the forward loop reads them."""
    pullback: Pullback
    batch_axes: int = 1
    """How many axes the batch has: that of the examples, B, and in truncation one of blocks side by side before it."""

    def over_batch(self, function: Callable, in_axes: Any) -> Callable:
        """`function` of one example, over the batch."""
        return over(function, in_axes, self.batch_axes)

    def over_rows(self, function: Callable, in_axes: Any) -> Callable:
        """`function` of one row, over time and batch."""
        return over(function, in_axes, 1 + self.batch_axes)


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
    """What is known of steps beside the inputs; leaves of `[W, B, …]` of a window, of `[T, B, …]` of all.

    None in place of leaves that are not saved.
    """

    after: Leaves
    """The state after each step."""
    kept: Leaves
    """What the pullback needs beside the states."""


def space(recurrence: Recurrence, state: Leaves, x: Leaves, save: str | None = None) -> Steps:
    """Arrays to write the steps of `x` into: all that is known of a step or, with `save`, what is saved of it."""
    pullback, axes = recurrence.pullback, recurrence.batch_axes
    drive = jax.eval_shape(recurrence.parts.project, recurrence.weights, example(x, 1 + axes))
    after, kept = jax.eval_shape(pullback.advance, recurrence.weights, example(state, axes), drive)
    states = save != "boundaries"
    implied = [save == "dots" and i for i in pullback.implied]

    def array(leaf: Any) -> jax.Array:
        return jax.lax.full((*x[0].shape[: 1 + axes], *leaf.shape), 0, leaf.dtype)

    return Steps(
        [array(a) if states and not i else None for a, i in zip(after, implied, strict=True)],
        [array(k) if save in (None, "dots") else None for k in kept],
    )


def run_window(
    recurrence: Recurrence, start: Leaves, x: Leaves, into: Steps, place: Any = 0, *, effects: bool
) -> tuple[Leaves, Steps]:
    """The states of one window.

    Args:
        recurrence: the step.
        start: the state before its first step, leaves of `[B, …]`.
        x: its inputs, leaves of `[W, B, …]`.
        into: where its steps are written, as `space` makes it.
        place: that of its first step there.
        effects: whether the step's side effects are to be seen.

    Returns:
        The state after its last step, `[B, …]`, and `into` with the steps.
    """
    pullback = recurrence.pullback
    drive = project_rows(recurrence, x)
    advance = pullback.advance_with_effects if effects else pullback.advance_arranged
    advance = recurrence.over_batch(advance, (None, 0, 0))

    def step(carry, drive_t):
        state, into, place = carry
        new = Steps(*advance(recurrence.arranged, state, drive_t))
        into = Steps(*(_write(arrays, values, place) for arrays, values in zip(into, new, strict=True)))
        return (new.after, into, place + 1), None

    (end, steps, _), _ = jax.lax.scan(step, (start, into, jnp.asarray(place)), drive, length=x[0].shape[0])
    return end, steps


def restore(recurrence: Recurrence, start: Leaves, saved: Steps | None, x: Leaves) -> Steps:
    """All that is known of a window's steps, from what was saved of them, None where that is nothing.

    The window is run again, or what is missing is computed for all rows at once.
    """
    if saved is None:
        return run_window(recurrence, start, x, space(recurrence, start, x), effects=False)[1]
    after = states_of(recurrence, start, saved, x)
    if not any(k is None for k in saved.kept):
        return Steps(after, saved.kept)
    advance = recurrence.over_rows(recurrence.pullback.advance, (None, 0, 0))
    _, kept = advance(recurrence.weights, _before(start, after), project_rows(recurrence, x))
    return Steps(after, kept)


def states_of(recurrence: Recurrence, start: Leaves, saved: Steps, x: Leaves) -> Leaves:
    """The state after each step of a window, with the leaves that were not saved."""
    if not any(a is None for a in saved.after):
        return saved.after
    imply = recurrence.over_rows(recurrence.pullback.imply, (None, 0, 0, 0, 0))
    return imply(recurrence.weights, _before(start, saved.after), project_rows(recurrence, x), *saved)


def project_rows(recurrence: Recurrence, x: Leaves) -> Leaves:
    """What the transition takes from the inputs of all rows."""
    return recurrence.over_rows(recurrence.parts.project, (None, 0))(recurrence.weights, x)


class Saved(NamedTuple):
    """What the forward pass leaves to the reverse pass."""

    starts: PerWindow
    """Of each window the state before its first step, leaves of `[B, …]`."""
    steps: Steps | None
    """Of all steps what is saved of them; None where that is nothing."""


class Forward(NamedTuple):
    """What the forward pass over all windows leaves."""

    end: Leaves
    """The state after the last step, leaves of `[B, …]`."""
    marked: Leaves
    """The state after the marked number of steps."""
    saved: Saved
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
    mark = windows.steps if mark is None else mark
    marks = mark < windows.steps

    def window(carry: Any, timed: tuple[Leaves, jax.Array], _: Any) -> tuple[Any, Any]:
        (start, marked, saved), (x, times) = carry, timed
        into, place = saved, times[0]
        if saved is None:
            into, place = space(recurrence, start, x, "states" if marks or outputs else save), 0
        end, into = run_window(recurrence, start, x, into, place, effects=True)
        made = None
        if marks or outputs:
            steps = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, place, len(times)), into)
            steps = Steps(states_of(recurrence, start, steps, x), [])
            if marks:
                ahead = mark - times[0]
                here = (ahead >= 0) & (ahead < len(times))
                before = _before(start, steps.after)
                there = jax.tree.map(lambda b: jax.lax.dynamic_index_in_dim(b, ahead, keepdims=False), before)
                marked = jax.tree.map(lambda a, b: jnp.where(here, a, b), there, marked)
            if outputs:
                made = read_rows(recurrence, rows_of(start, steps, x))
        return (end, marked, None if saved is None else into), (start, made)

    saved = None if save == "boundaries" else space(recurrence, state, xs, save)
    (end, marked, saved), out = scan(window, (state, state, saved), (xs, jnp.arange(windows.steps)), windows)
    starts, made = (PerWindow(*of_windows) for of_windows in zip(*(w or (None, None) for w in out), strict=True))
    return Forward(end, marked if marks else end, Saved(starts, saved), made)


class Rows(NamedTuple):
    """The steps of a stretch of time, of all examples; leaves of `[W, B, …]`."""

    before: Leaves
    after: Leaves
    kept: Leaves
    x: Leaves


def rows_of(start: Leaves, steps: Steps, x: Leaves) -> Rows:
    """The rows of a window, from the state before its first step, its steps, and its inputs."""
    return Rows(_before(start, steps.after), *steps, x)


def read_rows(recurrence: Recurrence, rows: Rows) -> Any:
    """The outputs of all rows."""
    readout = recurrence.over_rows(recurrence.parts.readout, (None, 0, 0, 0))
    return readout(recurrence.weights, rows.after, rows.x, rows.before)


def _before(start: Leaves, after: Leaves) -> Leaves:
    """The state before each step, `[W, B, …]`."""
    pairs = zip(start, after, strict=True)
    return [None if a is None else jnp.concatenate([s[None], a[:-1]]) for s, a in pairs]


def _write(arrays: Leaves, values: Leaves, place: Any) -> Leaves:
    """`arrays` with the values of one step in their place; None stays None."""
    pairs = zip(arrays, values, strict=True)
    return [None if a is None else jax.lax.dynamic_update_index_in_dim(a, v, place, 0) for a, v in pairs]
