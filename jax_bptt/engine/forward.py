"""The forward pass: the states of a window, and over all windows what the reverse pass needs of them.

Per window, the inputs of all rows are projected at once; the loop over time steps holds the transition alone. Saved is
the state before each window's first step, and of every step the state after it and the residuals (`save="dots"`), or
the state alone (`save="states"`), or nothing (`save="boundaries"`): then the reverse pass runs the window again.

What is saved of a step is written in its place among that of all steps, in buffers of `[T, B, …]` that the loops over
windows and over steps carry: stacked by each of the two loops, it would be written three times. Where several steps are
one body of the loop, they are written at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.engine.flatten import Inputs, Recurrence
from jax_bptt.engine.leaves import Leaves, full, only, vary, varying
from jax_bptt.engine.plan import bodies_over
from jax_bptt.engine.platforms import AT_ONCE, by_platform
from jax_bptt.engine.solvers.block_maps import solve_forwards
from jax_bptt.engine.solvers.sequential import scan_steps
from jax_bptt.engine.windows import PerWindow, Windows, scan_windows
from jax_bptt.model import PyTree, Save


class Trajectory(NamedTuple):
    """What is known of steps beside the inputs; leaves of `[W, B, …]` of a window, of `[T, B, …]` of all.

    None in place of leaves that are not saved.
    """

    states: Leaves  # the state after each step
    residuals: Leaves  # what the pullback needs beside the states


class Checkpoints(NamedTuple):
    """What the forward pass leaves to the reverse pass."""

    starts: PerWindow  # of each window the state before its first step, leaves of [B, …]
    trajectory: Trajectory | None  # of all steps what is saved of them; None where that is nothing


class Rows(NamedTuple):
    """The steps of a window, of all examples; leaves of `[W, B, …]`."""

    before: Leaves  # the state that each step begins with: where it is reset, what it is put back to
    after: Leaves
    residuals: Leaves
    inputs: Inputs


def run_forward(
    recurrence: Recurrence,
    state: Leaves,
    inputs: Inputs,
    windows: Windows,
    save: Save,
    *,
    emit: Callable[[Rows, Any], Any] | None = None,
    timed: PyTree = None,
) -> tuple[Leaves, Checkpoints, PerWindow]:
    """Run over all windows: the state after the last step, what is saved, and what was emitted.

    Args:
        emit: makes of a window's rows, and of what is `timed` of it, what is returned of every window.
    """

    def window(carry: Any, of_window: Any, _: None, size: int) -> tuple[Any, Any]:
        (start, saved, offset), (inputs, times) = carry, of_window
        here, buffers = offset, saved
        if buffers is None:  # nothing is kept: the window's steps are written by themselves
            here, buffers = 0, allocate(recurrence, size, "states" if emit else save)
        end, buffers = run_window(recurrence, start, inputs, buffers, here, size, effects=True)
        emitted = None
        if emit is not None:
            steps = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, here, size), buffers)
            states = states_of(recurrence, start, steps, inputs, size)
            emitted = emit(rows_of(recurrence, start, Trajectory(states, []), inputs), times)
        return (end, None if saved is None else buffers, offset + size), (start, emitted)

    saved = None if save == "boundaries" else allocate(recurrence, windows.steps, save)
    (end, saved, _), out = scan_windows(window, (state, saved, jnp.zeros((), int)), (inputs, timed), windows)
    starts, emitted = (PerWindow(*of_windows) for of_windows in zip(*(w or (None, None) for w in out), strict=True))
    return end, Checkpoints(starts, saved), emitted


def run_window(
    recurrence: Recurrence, start: Leaves, inputs: Inputs, buffers: Trajectory, offset: Any, size: int, *, effects: bool
) -> tuple[Leaves, Trajectory]:
    """The state after a window's last step, `[B, …]`, and the buffers with all of its steps.

    Args:
        start: the state before its first step, leaves of `[B, …]`.
        inputs: of its steps, leaves of `[W, B, …]`.
        buffers, offset: where its steps are written, as `allocate` makes it, and from which place on.
        size: W.
        effects: whether the step's side effects are to be seen.
    """
    pullback = recurrence.pullback
    drive = project_rows(recurrence, inputs)
    advance = recurrence.over_batch(pullback.advance_with_effects if effects else pullback.advance, (None, 0, 0))

    def step(state: Leaves, of_step: Any) -> tuple[Leaves, Trajectory]:
        drive_t, reset_t = of_step
        new = Trajectory(*advance(recurrence.weights, recurrence.put_back(reset_t, state), drive_t))
        states = [vary(s, varying(like)) for s, like in zip(new.states, state, strict=True)]
        return states, Trajectory(*(only(kept, of) for kept, of in zip(buffers, (states, new.residuals), strict=True)))

    def written(carry: Any, of_step: Any) -> tuple[Any, None]:
        state, buffers, offset = carry
        state, new = step(state, of_step)
        return (state, _write(buffers, jax.tree.map(lambda a: a[None], new), offset), offset + 1), None

    def written_at_once(carry: Any, of_block: Any, _: None, steps: int) -> tuple[Any, None]:
        state, buffers, offset = carry
        state, new = jax.lax.scan(step, state, of_block, length=steps, unroll=steps)
        return (state, _write(buffers, new, offset), offset + steps), None

    def over_steps(unroll: int | bool) -> tuple[Leaves, Trajectory]:
        if unroll == AT_ONCE:
            end, steps = _at_once(recurrence, start, drive, inputs.reset, buffers, size)
            is_all = all(len(buffer) == size for buffer in jax.tree.leaves(buffers))
            return end, steps if is_all else _write(buffers, steps, offset)
        carry, timed = (start, buffers, jnp.asarray(offset)), (drive, inputs.reset)
        if (unroll == 1 and unroll is not True) or not isinstance(size, int):
            (end, all_written, _), _ = scan_steps(written, carry, timed, size)
        else:
            block = size if unroll is True else min(unroll, size)
            (end, all_written, _), _ = scan_windows(written_at_once, carry, timed, Windows(size, block))
        return end, all_written

    return by_platform(over_steps, *bodies_over(size, recurrence.bodies, recurrence.solvable.forwards))


def _at_once(
    recurrence: Recurrence, start: Leaves, drive: Leaves, reset: jax.Array | None, buffers: Trajectory, size: int
) -> tuple[Leaves, Trajectory]:
    """The state after a window's last step, and what is kept of its steps; of a transition affine in the state."""
    states = solve_forwards(recurrence, start, drive, reset, size)
    residuals = buffers.residuals
    if jax.tree.leaves(residuals):
        advance = recurrence.over_rows(recurrence.pullback.advance, (None, 0, 0), size)
        _, made = advance(recurrence.weights, _before(recurrence, start, states, reset), drive)
        residuals = only(residuals, made)
    return [s[-1] for s in states], Trajectory(only(buffers.states, states), residuals)


def allocate(recurrence: Recurrence, steps: int, save: Save | None = None) -> Trajectory:
    """Buffers to write steps into: for all that is known of them or, with `save`, what is saved."""
    pullback = recurrence.pullback
    states = save != "boundaries"
    derived = [save == "dots" and is_derived for is_derived in pullback.derived]

    def buffer(leaf: Any) -> jax.Array:
        return full((steps, *recurrence.lanes, *recurrence.batch, *leaf.shape), leaf.dtype, varying(leaf))

    return Trajectory(
        [buffer(s) if states and not d else None for s, d in zip(recurrence.state, derived, strict=True)],
        [buffer(r) if save in (None, "dots") else None for r in pullback.residuals],
    )


def rematerialise(
    recurrence: Recurrence, start: Leaves, saved: Trajectory | None, inputs: Inputs, size: int
) -> Trajectory:
    """All that is known of a window's steps, from what was saved of them, None where that is nothing.

    The window is run again, or what is missing is computed for all rows at once.
    """
    if saved is None:
        return run_window(recurrence, start, inputs, allocate(recurrence, size), 0, size, effects=False)[1]
    states = states_of(recurrence, start, saved, inputs, size)
    if not any(r is None for r in saved.residuals):
        return Trajectory(states, saved.residuals)
    complete = recurrence.over_rows(recurrence.pullback.complete, (None, 0, 0, 0), size)
    before = _before(recurrence, start, states, inputs.reset)
    return Trajectory(states, complete(recurrence.weights, before, project_rows(recurrence, inputs), states))


def states_of(recurrence: Recurrence, start: Leaves, saved: Trajectory, inputs: Inputs, size: int) -> Leaves:
    """The state after each step of a window, with the leaves that were not saved."""
    if not any(s is None for s in saved.states):
        return saved.states
    derive = recurrence.over_rows(recurrence.pullback.derive, (None, 0, 0, 0, 0), size)
    before = _before(recurrence, start, saved.states, inputs.reset)
    return derive(recurrence.weights, before, project_rows(recurrence, inputs), *saved)


def state_after(
    recurrence: Recurrence, checkpoints: Checkpoints, inputs: Inputs, windows: Windows, steps: int
) -> Leaves:
    """The state after so many steps, fewer than all, from what was saved of them."""
    window, rest = divmod(steps, windows.size)
    full = window < windows.full
    start = jax.tree.map(lambda a: a[window], checkpoints.starts.full) if full else checkpoints.starts.last
    if not rest:
        return start
    inputs, saved = jax.tree.map(lambda a: a[steps - rest : steps], (inputs, checkpoints.trajectory))
    if saved is None:
        nowhere = allocate(recurrence, rest, "boundaries")
        end, _ = run_window(recurrence, start, inputs, nowhere, 0, rest, effects=False)
        return end
    return jax.tree.map(lambda a: a[-1], states_of(recurrence, start, saved, inputs, rest))


def project_rows(recurrence: Recurrence, inputs: Inputs) -> Leaves:
    """What the transition takes from the inputs of all rows."""
    return recurrence.over_rows(recurrence.parts.project, (None, 0), inputs.steps)(recurrence.weights, inputs.x)


def read_rows(recurrence: Recurrence, rows: Rows) -> PyTree:
    """The outputs of all rows."""
    readout = recurrence.over_rows(recurrence.parts.readout, (None, 0, 0, 0), rows.inputs.steps)
    return readout(recurrence.weights, rows.after, rows.inputs.x, rows.before)


def rows_of(recurrence: Recurrence, start: Leaves, trajectory: Trajectory, inputs: Inputs) -> Rows:
    """The rows of a window, from the state before its first step, its steps, and its inputs."""
    return Rows(_before(recurrence, start, trajectory.states, inputs.reset), *trajectory, inputs)


def _before(recurrence: Recurrence, start: Leaves, after: Leaves, reset: jax.Array | None) -> Leaves:
    """The state that each step begins with, `[W, B, …]`; None where that after each step is not there."""
    pairs = zip(start, after, strict=True)
    return recurrence.put_back(reset, [None if a is None else jnp.concatenate([s[None], a[:-1]]) for s, a in pairs])


def _write(buffers: Trajectory, steps: Trajectory, offset: Any) -> Trajectory:
    """The buffers with what is kept of some steps, `[n, B, …]`, in its place."""
    return jax.tree.map(lambda a, new: jax.lax.dynamic_update_slice_in_dim(a, new, offset, 0), buffers, steps)
