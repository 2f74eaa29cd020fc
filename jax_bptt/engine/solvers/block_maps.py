"""δ and the state as linear recurrences of blocks, solved for all steps of a window at once.

    δ_{t−1} = K_t (δ_t + credit_t) + credit'_t        K_t made of pullbacks of units
    h_t     = K_tᵀ h_{t−1} + c_t                      where the transition is affine in the state

Where a state is reset, K_t is zero; at a gate, K_t and credit'_t are multiplied by it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.engine.flatten import Recurrence
from jax_bptt.engine.leaves import Leaves, only, scaled, vary, varying, where, zeros
from jax_bptt.engine.solvers.at_once import applied, solve
from jax_bptt.engine.step import graph
from jax_bptt.engine.step.blocks import Block


def solve_backwards(
    recurrence: Recurrence,
    delta: Leaves,
    coefficients: Leaves,
    to_after: Leaves,
    to_before: Leaves,
    reset: jax.Array | None,
    gate: jax.Array | None,
    reset_to: Leaves,
    size: int,
) -> tuple[Leaves, Leaves, Leaves]:
    """δ at the start, what resets kept of it, and δ of the state after each step, as `recur` has them.

    Args:
        delta: δ at the end.
        coefficients, to_after, to_before, reset, gate: what the recursion reads, leaves of `[W, B, …]`.
        reset_to: of which leaves it is wanted what resets kept.
    """
    pullback, axes = recurrence.pullback, 1 + len(recurrence.lanes) + len(recurrence.batch)
    fixed, shapes = pullback.fix(recurrence.weights), recurrence.with_delta(recurrence.state)
    start, deltas, reset_bar = list(delta), list(delta), zeros((), only(reset_to, delta))
    for block in pullback.blocks or ():

        def pulled(unit: Leaves) -> Leaves:
            if not pullback.coefficients:
                return _same_for_all(pullback.pull(fixed, [], unit), axes)
            return recurrence.over_rows(pullback.pull, (None, 0, None), size)(fixed, coefficients, unit)

        factors = _factors(block, pulled, shapes, axes, block.pattern)
        first = _units(block, delta, axes - 1, 0)
        after, before = (_of_rows(block, leaves, delta, size, axes) for leaves in (to_after, to_before))
        constants = applied(factors, after) + before
        handed = _gated(gate, _dropped(reset, factors, 3), 3), _gated(gate, _dropped(reset, constants, 2), 2)
        states = solve(*handed, first, reverse=True)
        following = jnp.concatenate([states[1:], first[None]]) + after
        made = _leaves(block, states, axes), _leaves(block, following, axes)
        for i, begun, of_step in zip(block.leaves, *made, strict=True):
            start[i], deltas[i] = begun[0], of_step
        if reset is not None:
            crossing = _leaves(block, applied(factors, following) + before, axes)
            for i, leaf in zip(block.leaves, crossing, strict=True):
                reset_bar[i] = None if reset_bar[i] is None else where(reset, [leaf])[0].sum(0)
    return start, reset_bar, deltas


def solve_forwards(recurrence: Recurrence, start: Leaves, drive: Leaves, reset: jax.Array | None, size: int) -> Leaves:
    """The state after each step of a window, `[W, B, …]`.

    Args:
        start: the state before its first step.
        drive: what the transition takes from the inputs of all rows.
    """
    axes = 1 + len(recurrence.lanes) + len(recurrence.batch)
    advance, shapes = recurrence.pullback.advance, recurrence.state
    origin = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    one_drive = [jax.ShapeDtypeStruct(u.shape[axes:], u.dtype) for u in drive]
    constants_of_all = recurrence.over_rows(lambda w, u: advance(w, origin, u)[0], (None, 0), size)
    constants_of_all = constants_of_all(recurrence.weights, drive)
    states: Leaves = [None] * len(shapes)
    for block in recurrence.pullback.blocks or ():

        def pushed(unit: Leaves) -> Leaves:
            def of_row(weights: Leaves, drive: Leaves) -> Leaves:
                return jax.jvp(lambda h: advance(weights, h, drive)[0], (origin,), (unit,))[1]

            shared = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in recurrence.weights]
            if not any(graph.reads(of_row, shared, one_drive)[len(shared) :]):
                return _same_for_all(of_row(recurrence.weights, [jnp.zeros(u.shape, u.dtype) for u in one_drive]), axes)
            return recurrence.over_rows(of_row, (None, 0), size)(recurrence.weights, drive)

        pattern = tuple(zip(*block.pattern, strict=True))
        factors = _factors(block, pushed, shapes, axes, pattern)
        first = _units(block, start, axes - 1, 0)
        constants = _of_rows(block, constants_of_all, start, size, axes)
        if reset is not None:
            pairs = zip(start, recurrence.reset_to, strict=True)
            to = [jnp.broadcast_to(s if to is None else to, s.shape)[None] for s, to in pairs]
            again = applied(factors, _units(block, to, axes)) + constants
            here = reset.reshape(size, 1, *reset.shape[1:], *[1] * (constants.ndim - reset.ndim - 1))
            constants, factors = jnp.where(here, again, constants), _dropped(reset, factors, 3)
        for i, leaf in zip(block.leaves, _leaves(block, solve(factors, constants, first), axes), strict=True):
            states[i] = leaf
    return states


def _factors(
    block: Block, of_unit: Callable[[Leaves], Leaves], shapes: Leaves, axes: int, pattern: Sequence[Sequence[bool]]
) -> jax.Array:
    """K of all rows, `[W or 1, n, n, …]`: its columns are what is made of units.

    Args:
        of_unit: of one in the place of a unit and of zero elsewhere, leaves of one example, what is made of it.
        pattern: by leaf that is made, then by leaf that it is made of.
    """
    columns, inner = [], _inner(block)
    for j, place in enumerate(block.leaves):
        for f in range(_number(block)):
            ones = [jnp.full(inner, g == f, shapes[place].dtype) for g in range(_number(block))]
            unit = [None if s is None else jnp.zeros(s.shape, s.dtype) for s in shapes]
            unit[place] = _stacked(block, jnp.stack(ones), 0)
            made = of_unit(unit)
            kept = [made[i] if pattern[a][j] else jnp.zeros_like(made[i]) for a, i in enumerate(block.leaves)]
            columns.append(_units(block, dict(zip(block.leaves, kept, strict=True)), axes))
    return jnp.stack(columns, 2)


def _same_for_all(leaves: Leaves, axes: int) -> Leaves:
    """Leaves of one example as those of all rows."""
    return jax.tree.map(lambda a: a.reshape((1,) * axes + a.shape), leaves)


def _dropped(reset: jax.Array | None, a: jax.Array, ahead: int) -> jax.Array:
    """Zero where the state is reset; of arrays with so many axes, time first, ahead of that of examples."""
    return a if reset is None else where(*_alike(~reset, a, ahead))[0]


def _gated(gate: jax.Array | None, a: jax.Array, ahead: int) -> jax.Array:
    """Times the gate; of arrays as for `_dropped`."""
    return a if gate is None else scaled(*_alike(gate, a, ahead))[0]


def _alike(of_rows: jax.Array, a: jax.Array, ahead: int) -> tuple[jax.Array, Leaves]:
    """What there is of each step of each example, as the first axes of an array, and that array of all of them."""
    steps, *batch = of_rows.shape
    wide = jnp.broadcast_to(a, (steps, *a.shape[1:ahead], *batch, *a.shape[ahead + of_rows.ndim - 1 :]))
    return of_rows.reshape(steps, *[1] * (ahead - 1), *batch), [wide]


def _of_rows(block: Block, leaves: Leaves, like: Leaves, size: int, axes: int) -> jax.Array:
    """The units of all rows, `[W, n, …]`, with zeros in place of None, and those that are the same for all repeated.

    Args:
        like: leaves without time.
    """
    filled = {
        i: jnp.broadcast_to(jnp.zeros_like(like[i]) if leaves[i] is None else leaves[i], (size, *like[i].shape))
        for i in block.leaves
    }
    return _units(block, {i: vary(leaf, varying(like[i])) for i, leaf in filled.items()}, axes)


# Leaves of a block as arrays of its units: leaf by leaf, and in each place along the axes that are free.


def _number(block: Block) -> int:
    return math.prod(block.shape[axis] for axis in block.free)


def _inner(block: Block) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(block.shape) if axis not in block.free)


def _units(block: Block, leaves: Any, axes: int, place: int = 1) -> jax.Array:
    """Of leaves with so many axes before their own an array with n in that place among these, and units at the end."""
    made = []
    for leaf in (leaves[i] for i in block.leaves):
        front = jnp.moveaxis(leaf, [axes + axis for axis in block.free], range(len(block.free)))
        made.append(front.reshape(_number(block), *leaf.shape[:axes], *_inner(block)))
    return jnp.moveaxis(jnp.concatenate(made), 0, place)


def _leaves(block: Block, units: jax.Array, axes: int) -> Leaves:
    """The leaves of a block, of all of its units."""
    parts = jnp.split(jnp.moveaxis(units, 1, 0), len(block.leaves))
    return [_stacked(block, part, axes) for part in parts]


def _stacked(block: Block, units: jax.Array, axes: int) -> jax.Array:
    leading = units.shape[1 : 1 + axes]
    front = units.reshape(*(block.shape[axis] for axis in block.free), *leading, *_inner(block))
    return jnp.moveaxis(front, range(len(block.free)), [axes + axis for axis in block.free])
