"""Truncated BPTT by the reverse scan: all windows of a stretch of time side by side, as more rows.

Time is cut into blocks of k1 steps. The window that ends with block i covers the k2 steps up to there: its own block
and, where k2 > k1, some of the q blocks before it. With fixed params its states are those of the whole sequence. So
everything but the recursion of δ is shared between overlapping windows and done once per step, as in exact BPTT:

    credit and linearisation of all rows  →  laps  →  immediate partials of all rows, with the sum of the windows' δ

A lap is the recursion of δ over the k1 steps of a block, with one lane per window. In lap 0 each lane is in its
window's own block, in lap p in the block p before it, in lap q it goes only as far as the window reaches. δ begins with
zero and is dropped at the end: nothing is handed on, except to the state at the outset.

Arrays of blocks are `[N, k1, B, …]`; inside a stretch, blocks are a second axis of the batch: `[k1, N, B, …]`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.forward import Recurrence, Saved, Steps, restore, rows_of
from jax_bptt.grid import Grid
from jax_bptt.problem import zero_delta
from jax_bptt.reverse import (
    Objective,
    Wanted,
    add,
    along,
    credit,
    immediate,
    linearise,
    lying,
    recur,
)
from jax_bptt.split import Leaves, differentiable
from jax_bptt.windows import PerWindow, Windows, scan


def default_lanes(grid: Grid, batch: int) -> int:
    """The number of windows side by side, where the user leaves it to us.

    As many as make 32 rows in a lap. Where the batch alone has them, still two, and four times as many as each reaches
    back over, so that little is done twice where two stretches meet, but no more than a quarter of all windows, so that
    what is computed about a stretch stays small beside what is saved of the sequence. (Measured with 1 to 128 windows
    on two CPU cores, elman and gru, T = 1024, B = 1 and 32, H from 128 to 512, k1 = k2 = 32 and k1 = 8, k2 = 32: more
    windows were hardly faster, and took up to ten times the memory; fewer rows were slower by a third.)
    """
    for_memory = max(1 + grid.reach, grid.blocks // 4)
    return min(grid.blocks, max(-(-32 // batch), min(max(2, 4 * grid.reach), for_memory)))


def reverse_truncated(
    recurrence: Recurrence,
    state: Leaves,
    saved: Saved,
    xs: Leaves,
    objective: Objective,
    grid: Grid,
    lanes: int,
    wanted: Wanted,
    delta: Leaves | None = None,
    constants: int = 0,
) -> tuple[jax.Array, Leaves, Leaves, Leaves]:
    """The sum of the gradients of all windows.

    Args:
        recurrence: what is differentiated.
        state: the state after the last step, leaves of `[B, …]`.
        saved: what the forward pass saved, with a window for each block.
        xs: the inputs, leaves of `[T, B, …]`.
        objective: the losses; steps without one are masked.
        grid: where truncation cuts; with no more context than windows reach back over.
        lanes: windows side by side.
        wanted: which of weights and xs a gradient is wanted for.
        delta: a cotangent of the state after the last step, which travels back in the last window.
        constants: how many leaves at the end of the state are constants to reset to, where the last of xs says so. No
            window cuts their credit.

    Returns:
        Loss, gradient of the weights, δ at the start, cotangents of the inputs `[T, B, …]`.
    """
    batch, q, k1 = state[0].shape[0], grid.reach, grid.k1
    recurrence = recurrence._replace(batch_axes=2)  # blocks, and examples
    times = np.arange(-grid.front, grid.context + grid.blocks * k1).reshape(-1, k1)  # [q + n, k1]
    real = (times >= 0) & (times < grid.steps)
    padded = not real.all()

    def in_blocks(a: jax.Array, head: Any = None) -> jax.Array:
        return _in_blocks(a, k1, grid.front // k1, a[0] if head is None else head)

    mask = objective.mask
    if padded:
        mask = jnp.ones((grid.steps, batch), objective.dtype) if mask is None else mask
        mask = jnp.where(real[..., None], in_blocks(mask), 0)
    elif mask is not None:
        mask = in_blocks(mask)
    starts = [_joined([jnp.broadcast_to(s[0], (grid.front // k1, *s.shape[1:])), s]) for s in _stacked(saved.starts)]
    steps = saved.steps
    if steps is not None:
        after = [a if a is None else in_blocks(a, s[0]) for a, s in zip(steps.after, starts, strict=True)]
        steps = Steps(after, jax.tree.map(in_blocks, steps.kept))
    inputs, targets = jax.tree.map(in_blocks, (xs, objective.targets))
    if constants and padded:
        inputs[-1] = inputs[-1] & real[..., None]  # nothing is put back where there is no step

    def stretch(carry, timed, _):
        loss, weights_bar, start_bar, xs_bar = carry
        (x, targets), mask, (start, steps), times, block = timed
        lanes = len(block) - q
        x, targets, mask, steps = jax.tree.map(_side_by_side, (x, targets, mask, steps))
        rows = rows_of(start, restore(recurrence, start, steps, x), x)

        # Credit: from the losses of all blocks, or of those that the lanes begin in.
        if grid.losses == "all":
            counts = jnp.asarray(_lane_counts(grid, lanes), objective.dtype)[..., None]
            from_losses = credit(recurrence, rows, objective.pull, targets, mask, wanted, counts)
            xs_more = from_losses.xs
        else:
            own, targets, mask = jax.tree.map(lambda a: a[:, q:], (rows, targets, mask))
            from_losses = credit(recurrence, own, objective.pull, targets, mask, wanted)
            xs_more = jax.tree.map(lambda a: _pad(a, q), from_losses.xs)
        to_after, to_before = from_losses.to_after, from_losses.to_before
        if delta is not None:
            is_last = (grid.steps == times[q:].T + 1)[..., None]  # [k1, lanes, 1]
            to_after = add(to_after, jax.tree.map(lambda d: _where(is_last, d[None, None]), delta))

        # δ, one lane per window, and of all of it what arrives at the outset: in lanes that begin there or pass by.
        residuals = linearise(recurrence, rows)
        starts, deltas = _laps(recurrence, grid, lanes, residuals, (to_after, to_before), state)
        begin = (times[q:, -1] + 1 == grid.k2)[:, None]  # [lanes, 1]
        moving = len(state) - constants
        arrived = jax.tree.map(lambda d: _where(begin, d).sum(0), starts[:moving])
        if padded:
            passed = (times.T == -1)[..., None]  # [k1, N, 1]
            arrived = add(arrived, jax.tree.map(lambda d: _where(passed, d).sum((0, 1)), deltas[:moving]))
        start_bar = add(start_bar, arrived + jax.tree.map(lambda d: d.sum(0), starts[moving:]))
        if padded:
            there = ((times >= 0) & (times < grid.steps)).T[..., None]
            deltas = jax.tree.map(lambda d: _where(there, d), deltas)

        # Immediate partials, with the sum of the lanes' δ.
        weights_more, x_bar = immediate(recurrence, rows, deltas, wanted)
        here = jax.tree.map(_side_by_side, add(x_bar, xs_more))
        xs_bar = jax.tree.map(lambda bar, more: _add_at(bar, more, block[0]), xs_bar, here)
        weights_bar = add(add(weights_bar, lying(weights_more)), lying(from_losses.weights))
        return (loss + from_losses.losses.sum(), weights_bar, start_bar, xs_bar), None

    carry = (
        jnp.zeros((), objective.dtype),
        wanted.zeros(),
        zero_delta(state),
        jax.tree.map(lambda w: jnp.zeros((*times.shape, *w.shape[1:]), w.dtype), wanted.xs),
    )
    timed = (inputs, targets), mask, (starts, steps), jnp.asarray(times), jnp.arange(len(times))
    (loss, weights_bar, start_bar, xs_bar), _ = scan(stretch, carry, timed, Windows(grid.blocks, lanes, overlap=q))
    xs_bar = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[grid.front :][: grid.steps], xs_bar)
    return loss, wanted.upright(weights_bar), start_bar, xs_bar


def _laps(
    recurrence: Recurrence,
    grid: Grid,
    lanes: int,
    residuals: Leaves,
    credit: tuple[Leaves, Leaves],
    state: Leaves,
) -> tuple[Leaves, Leaves]:
    """The recursion of δ in all lanes of a stretch.

    Args:
        residuals: leaves of `[k1, N, B, …]`, of N = q + lanes blocks.
        credit: to the states after and before each step: of all blocks where all losses count, else of the lanes' own.

    Returns:
        δ where each lane's window starts, `[lanes, B, …]`, and the sum of the lanes' δ after each step,
        `[k1, N, B, …]`.
    """
    q, k1 = grid.reach, grid.k1

    def lap(p, length, delta, deltas, credit):
        def last_steps(a):
            return a[k1 - length :]

        def of_lap(a):
            return last_steps(jax.lax.dynamic_slice_in_dim(a, q - p, lanes, axis=1))

        to_after, to_before = jax.tree.map(of_lap if grid.losses == "all" else last_steps, credit)
        delta, more = recur(recurrence, delta, (jax.tree.map(of_lap, residuals), to_after, to_before), length)
        return delta, jax.tree.map(lambda a, b: _add_at(a, b, k1 - length, q - p), deltas, more)

    zeros = differentiable(state)
    delta = jax.tree.map(lambda s: jnp.zeros((lanes, *s.shape), s.dtype), zeros)
    deltas = jax.tree.map(lambda s: jnp.zeros((k1, q + lanes, *s.shape), s.dtype), zeros)
    last = grid.k2 - q * k1
    later = credit if grid.losses == "all" else jax.tree.map(lambda _: None, credit)
    if q == 0:
        delta, deltas = lap(0, last, delta, deltas, credit)
    else:
        delta, deltas = lap(0, k1, delta, deltas, credit)
        if q > 1:
            (delta, deltas), _ = jax.lax.scan(
                lambda carry, p: (lap(p, k1, *carry, later), None), (delta, deltas), jnp.arange(1, q)
            )
        delta, deltas = lap(q, last, delta, deltas, later)
    return delta, deltas


def _lane_counts(grid: Grid, lanes: int) -> np.ndarray:
    """How many of a stretch's windows reach each step of its blocks, `[k1, N]`."""
    counts = np.zeros((grid.k1, grid.reach + lanes), int)
    for lane in range(lanes):
        covered = counts[:, lane : grid.reach + lane + 1].T.reshape(-1)  # from the first block that the lane reaches
        covered[-grid.k2 :] += 1
        counts[:, lane : grid.reach + lane + 1] = covered.reshape(-1, grid.k1).T
    return counts


def _side_by_side(a: jax.Array) -> jax.Array:
    """`[N, k1, B, …]` as `[k1, N, B, …]`, and the other way round."""
    return jnp.moveaxis(a, 0, 1)


def _in_blocks(a: jax.Array, k1: int, ahead: int, head: jax.Array) -> jax.Array:
    """`[T, …]` as `[ahead + ⌈T/k1⌉, k1, …]`: in blocks ahead there is `head`, and after the last step its like."""
    full, shape = len(a) // k1, a.shape[1:]
    last = [a[full * k1 :], jnp.broadcast_to(a[-1:], (-len(a) % k1, *shape))]
    return _joined(
        [
            jnp.broadcast_to(head, (ahead, k1, *shape)),
            a[: full * k1].reshape(full, k1, *shape),
            _joined(last).reshape(-1, k1, *shape),
        ]
    )


def _joined(parts: list[jax.Array]) -> jax.Array:
    """Arrays put together along their first axis, those of no length left out."""
    some = [part for part in parts if part.shape[0]] or parts[:1]
    return some[0] if len(some) == 1 else jnp.concatenate(some)


def _pad(a: jax.Array, blocks: int) -> jax.Array:
    """`[k1, lanes, B, …]` as `[k1, blocks + lanes, B, …]`, with zeros."""
    return jnp.pad(a, [(0, 0), (blocks, 0)] + [(0, 0)] * (a.ndim - 2))


def _stacked(stored: PerWindow) -> Leaves:
    """What was stored of each window, one after the other."""
    parts = [part for part in (stored.full, jax.tree.map(lambda a: a[None], stored.last)) if part is not None]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _where(mask: jax.Array, a: jax.Array) -> jax.Array:
    """`a` where the mask, which has its first axes, is true, else 0."""
    return jnp.where(along(mask, a), a, jnp.zeros_like(a))


def _add_at(a: jax.Array, b: jax.Array, *place: Any) -> jax.Array:
    """`a` with `b` added to a part of it that begins at `place`."""
    place = (*place, *[0] * (a.ndim - len(place)))
    return jax.lax.dynamic_update_slice(a, jax.lax.dynamic_slice(a, place, b.shape) + b, place)
