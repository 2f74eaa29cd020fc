"""Truncated BPTT by the reverse scan: all windows of a group of blocks side by side, as more rows.

(Windows that meet are run alone by `in_turn`, where the batch has rows enough.)

Time is cut into blocks of k1 steps. The window that ends with block i covers the k2 steps up to there: its own block
and, where k2 > k1, some of the q blocks before it. With fixed params its states are those of the whole sequence. So
everything but the recursion of δ is shared between overlapping windows and done once per step, as in exact BPTT:

    credit and linearisation of all rows  →  hops  →  immediate partials of all rows, with the sum of the windows' δ

A hop is the recursion of δ over the k1 steps of a block, with one lane per window. In hop 0 each lane is in its
window's own block, in hop p in the block p before it, in hop q it goes only as far as the window reaches. δ begins with
zero and is dropped at the end: nothing is handed on, except to the state at the outset.

Arrays of blocks are `[N, k1, B, …]`; inside a group, blocks are a second axis of the batch: `[k1, N, B, …]`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.flatten import FlatCall, Inputs, Recurrence, Wrt
from jax_bptt.engine.forward import Checkpoints, Rows, Trajectory, rematerialise, rows_of
from jax_bptt.engine.leaves import Leaves, add, expand_dims_like, full, varying, where, zeros
from jax_bptt.engine.objective import Objective
from jax_bptt.engine.outer_products import from_wide, to_wide, wide_zeros
from jax_bptt.engine.schedule import Grid
from jax_bptt.engine.window_gradient import (
    Credit,
    Gradient,
    Linearised,
    credit_from_losses,
    immediate_partials,
    linearise,
    recur,
)
from jax_bptt.engine.windows import PerWindow, Windows, scan_windows
from jax_bptt.model import PyTree


class Blocks(NamedTuple):
    """Time in blocks, copies of the first one in front, and the rest of the last one filled up; `[q + n, k1, B, …]`."""

    inputs: Inputs
    targets: PyTree
    mask: jax.Array | None
    saved: Trajectory | None
    starts: Leaves  # [q + n, B, …]
    times: jax.Array  # [q + n, k1]
    place: jax.Array  # [q + n]


def sum_of_windows(
    flat: FlatCall, checkpoints: Checkpoints, objective: Objective, delta: Leaves, grid: Grid, lanes: int
) -> Gradient:
    """The sum of the gradients of all windows.

    Args:
        checkpoints: what the forward pass saved, with a window for each block.
        objective: the losses; steps without one are masked.
        delta: a cotangent of the state after the last step, leaves of `[B, …]`, which travels back in the last window.
        grid: where truncation cuts; with no more context than windows reach back over.
        lanes: windows side by side.
    """
    wrt = flat.wrt
    blocks = _in_blocks(flat, checkpoints, objective, grid)
    shape = blocks.times.shape

    def group(carry: Any, blocks: Blocks, _: None, size: int) -> tuple[Any, None]:
        loss, weights_bar, start_bar, reset_bar, xs_bar = carry
        recurrence = flat.recurrence._replace(lanes=(grid.reach + size,))
        gradient = _gradient_of_group(recurrence, blocks, objective, delta, wrt, grid, size)
        start_bar, reset_bar = add(start_bar, gradient.start_bar), add(reset_bar, gradient.reset_bar)
        here = jax.tree.map(_side_by_side, gradient.xs_bar)
        xs_bar = jax.tree.map(lambda bar, more: _add_at(bar, more, blocks.place[0]), xs_bar, here)
        weights_bar = add(weights_bar, to_wide(gradient.weights_bar))
        return (loss + gradient.loss, weights_bar, start_bar, reset_bar, xs_bar), None

    carry = (
        objective.zero,
        wide_zeros(wrt.weights),
        zeros((), flat.recurrence.with_delta(flat.state)),
        zeros((), wrt.reset_to),
        jax.tree.map(lambda w: full((*shape, *w.shape[1:]), w.dtype, varying(w)), wrt.xs),
    )
    windows = Windows(grid.blocks, lanes, overlap=grid.reach)
    (loss, weights_bar, start_bar, reset_bar, xs_bar), _ = scan_windows(group, carry, blocks, windows)
    steps = slice(grid.front, grid.front + grid.steps)
    xs_bar = jax.tree.map(lambda a: a.reshape(shape[0] * shape[1], *a.shape[2:])[steps], xs_bar)
    return Gradient(loss, from_wide(weights_bar, wrt.weights), start_bar, reset_bar, [], xs_bar)


def _gradient_of_group(
    recurrence: Recurrence, blocks: Blocks, objective: Objective, delta: Leaves, wrt: Wrt, grid: Grid, lanes: int
) -> Gradient:
    """The sum of the gradients of a group's windows; that of xs is of `[k1, N, B, …]`."""
    times = blocks.times
    inputs, targets, mask, saved = jax.tree.map(
        _side_by_side, (blocks.inputs, blocks.targets, blocks.mask, blocks.saved)
    )
    rows = rows_of(recurrence, blocks.starts, rematerialise(recurrence, blocks.starts, saved, inputs, grid.k1), inputs)
    there = ((times >= 0) & (times < grid.steps)).T  # [k1, N]
    if grid.rest:  # what follows the last step is no row of any run: in its place the first one of its block
        rows, targets = jax.tree.map(lambda a: jnp.where(expand_dims_like(there, a), a, a[:1]), (rows, targets))
    credit = _credit(recurrence, rows, objective._replace(targets=targets, mask=mask), wrt, grid, lanes)
    is_last = jnp.equal(times[grid.reach :].T + 1, grid.steps)  # [k1, lanes]
    from_end = jax.tree.map(lambda d: jnp.broadcast_to(d, (grid.k1, lanes, *d.shape)), delta)
    credit = credit._replace(to_after=add(credit.to_after, where(is_last, from_end)))

    # δ, one lane per window, and of all of it what arrives at the outset: in lanes that begin there or pass by.
    starts, reset_bar, deltas = _hops(recurrence, rows, there, credit, wrt, grid, lanes)
    begin = times[grid.reach :, -1] + 1 == grid.k2  # [lanes]
    start_bar = jax.tree.map(lambda d: d.sum(0), where(begin, starts))
    if grid.padded:
        passed = where(times.T == -1, deltas)  # [k1, N]
        start_bar = add(start_bar, jax.tree.map(lambda d: d.sum((0, 1)), passed))
        deltas = where(there, deltas)

    weights_bar, xs_bar = immediate_partials(recurrence, rows, deltas, wrt)
    weights_bar, xs_bar = add(weights_bar, credit.weights_bar), add(xs_bar, credit.xs_bar)
    reset_bar = jax.tree.map(lambda d: d.sum(0), reset_bar)
    return Gradient(credit.losses.sum(), weights_bar, start_bar, reset_bar, [], xs_bar)


def _credit(recurrence: Recurrence, rows: Rows, objective: Objective, wrt: Wrt, grid: Grid, lanes: int) -> Credit:
    """From the losses of all blocks, or of those that the lanes begin in; to xs, of all blocks in either case."""
    if grid.losses == "all":
        counts = jnp.asarray(_lane_counts(grid, lanes), objective.zero.dtype)
        return credit_from_losses(recurrence, rows, objective, wrt, counts)
    of_lanes = rows, objective.targets, objective.mask
    own, targets, mask = jax.tree.map(lambda a: a[:, grid.reach :], of_lanes)
    recurrence = recurrence._replace(lanes=(lanes,))
    credit = credit_from_losses(recurrence, own, objective._replace(targets=targets, mask=mask), wrt)
    return credit._replace(xs_bar=jax.tree.map(lambda a: _pad(a, grid.reach), credit.xs_bar))


def _hops(
    recurrence: Recurrence, rows: Rows, there: jax.Array, credit: Credit, wrt: Wrt, grid: Grid, lanes: int
) -> tuple[Leaves, Leaves, Leaves]:
    """The recursion of δ in all lanes of a group of N = q + lanes blocks.

    Args:
        there: where rows are steps, `[k1, N]`.
        credit: to the states of all blocks where all losses count, else of the lanes' own.

    Returns:
        δ where each lane's window starts, and what resets kept of it, `[lanes, B, …]`; and the sum of the lanes' δ
        after each step, `[k1, N, B, …]`.
    """
    q, k1 = grid.reach, grid.k1
    coefficients = linearise(recurrence, rows)
    reset = None if rows.inputs.reset is None else where(there, [rows.inputs.reset])[0]
    from_losses = credit.to_after, credit.to_before
    recurrence = recurrence._replace(lanes=(lanes,))

    def hop(carry: tuple[Leaves, Leaves, Leaves], p: Any, size: int, own: bool) -> tuple[Leaves, Leaves, Leaves]:
        delta, reset_bar, deltas = carry

        def of_hop(a: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(a, q - p, lanes, axis=1)

        read = jax.tree.map(lambda a: of_hop(a[k1 - size :]), (coefficients, reset))
        if grid.losses == "all":
            to = jax.tree.map(lambda a: of_hop(a[k1 - size :]), from_losses)
        else:
            to = jax.tree.map(lambda a: a[k1 - size :] if own else None, from_losses)
        delta, more, of_block = recur(recurrence, delta, Linearised(read[0], to[0], to[1], read[1]), wrt, size)
        deltas = jax.tree.map(lambda a, b: _add_at(a, b, k1 - size, q - p), deltas, of_block)
        return delta, add(reset_bar, more), deltas

    state = recurrence.with_delta(recurrence.state)
    shape = recurrence.batch
    deltas = zeros((k1, q + lanes, *shape), state)
    carry = zeros((lanes, *shape), state), zeros((lanes,), wrt.reset_to), deltas
    carry = hop(carry, 0, grid.k2 - q * k1 if q == 0 else k1, True)
    if q > 1:
        carry, _ = jax.lax.scan(lambda carry, p: (hop(carry, p, k1, False), None), carry, jnp.arange(1, q))
    return carry if q == 0 else hop(carry, q, grid.k2 - q * k1, False)


def _lane_counts(grid: Grid, lanes: int) -> np.ndarray:
    """How many of a group's windows reach each step of its blocks, `[k1, N]`."""
    counts = np.zeros((grid.k1, grid.reach + lanes), int)
    for lane in range(lanes):
        covered = counts[:, lane : grid.reach + lane + 1].T.reshape(-1)  # from the first block that the lane reaches
        covered[-grid.k2 :] += 1
        counts[:, lane : grid.reach + lane + 1] = covered.reshape(-1, grid.k1).T
    return counts


def _in_blocks(flat: FlatCall, checkpoints: Checkpoints, objective: Objective, grid: Grid) -> Blocks:
    """All of time in blocks; the steps that fill them up have no loss."""
    k1, ahead = grid.k1, grid.front // grid.k1
    times = np.arange(-grid.front, grid.context + grid.blocks * k1).reshape(grid.reach + grid.blocks, k1)

    def in_blocks(a: jax.Array) -> jax.Array:
        return _cut(a, k1, ahead)

    mask = objective.mask if objective.mask is None else in_blocks(objective.mask)
    if grid.rest or (grid.padded and grid.losses == "all"):
        ones = jnp.ones((*times.shape, *flat.recurrence.batch), objective.zero.dtype)
        mask = where(jnp.asarray((times >= 0) & (times < grid.steps)), [ones if mask is None else mask])[0]
    starts = [_joined([jnp.broadcast_to(s[:1], (ahead, *s.shape[1:])), s]) for s in _stacked(checkpoints.starts)]
    inputs, saved, targets = jax.tree.map(in_blocks, (flat.inputs, checkpoints.trajectory, objective.targets))
    return Blocks(inputs, targets, mask, saved, starts, jnp.asarray(times), jnp.arange(len(times)))


def _cut(a: jax.Array, k1: int, ahead: int) -> jax.Array:
    """`[T, …]` as `[ahead + ⌈T/k1⌉, k1, …]`: blocks ahead are the first one again, and after the last step is its like.

    So the rows of blocks ahead are rows of a run, too: no derivative is infinite in them that is not so in others.
    """
    full, shape = len(a) // k1, a.shape[1:]
    last = [a[full * k1 :], jnp.broadcast_to(a[-1:], (-len(a) % k1, *shape))]
    blocks = _joined(
        [a[: full * k1].reshape(full, k1, *shape), _joined(last).reshape(-(-len(a) // k1) - full, k1, *shape)]
    )
    return _joined([jnp.broadcast_to(blocks[:1], (ahead, k1, *shape)), blocks])


def _joined(parts: list[jax.Array]) -> jax.Array:
    """Arrays put together along their first axis, those of no length left out."""
    some = [part for part in parts if part.shape[0]] or parts[:1]
    return some[0] if len(some) == 1 else jnp.concatenate(some)


def _stacked(stored: PerWindow) -> Leaves:
    """What was stored of each window, one after the other."""
    parts = [part for part in (stored.full, jax.tree.map(lambda a: a[None], stored.last)) if part is not None]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _side_by_side(a: jax.Array) -> jax.Array:
    """`[N, k1, B, …]` as `[k1, N, B, …]`, and the other way round."""
    return jnp.moveaxis(a, 0, 1)


def _pad(a: jax.Array, blocks: int) -> jax.Array:
    """`[k1, lanes, B, …]` as `[k1, blocks + lanes, B, …]`, with zeros."""
    return jnp.pad(a, [(0, 0), (blocks, 0)] + [(0, 0)] * (a.ndim - 2))


def _add_at(a: jax.Array, b: jax.Array, *offset: Any) -> jax.Array:
    """`a` with `b` added to a part of it that begins at `offset`."""
    offset = (*offset, *[0] * (a.ndim - len(offset)))
    return jax.lax.dynamic_update_slice(a, jax.lax.dynamic_slice(a, offset, b.shape) + b, offset)
