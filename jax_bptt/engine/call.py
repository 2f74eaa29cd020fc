"""A call: a step, a loss, and the arguments that they are called with, checked.

    given, sizes = arrays_of(call)       what it is run with, and the rest
    step, constants = close_step(call)   functions that close over nothing

Everything that the engine computes, it computes of one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jax_bptt.engine.leaves import Leaves, axes_of, vary
from jax_bptt.engine.step import graph
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Loss, PyTree, Step


class Call(NamedTuple):
    """A step, a loss and the arguments that they are called with, checked; leaves are arrays."""

    step: Step
    loss: Loss | None
    params: PyTree
    state: PyTree  # [B, …]
    xs: PyTree  # [T, B, …]
    targets: PyTree  # [T, B, …]
    mask: jax.Array | None  # [T, B], in the dtype of the loss
    reset: jax.Array | None  # [T, B] of booleans
    reset_state: PyTree  # [B, …]
    steps: int  # T
    batch: tuple[int, ...]  # (B,); () of a step that is written for all examples, whose arrays have no such axis
    loss_dtype: Any  # none where there is no loss
    reads: tuple[bool, ...] | None = None  # per leaf of the outputs: whether the loss depends on it; None: on all
    gate: jax.Array | None = None  # [T, B], what δ is multiplied by where it is handed back to the step before


ARRAYS = ("params", "state", "xs", "targets", "mask", "reset", "reset_state", "gate")
"""Of a call, what it is run with."""


def arrays_of(call: Call) -> tuple[dict[str, PyTree], Call]:
    """What a call is run with, and the call without it: functions that close over arrays would keep tracers alive."""
    return {name: getattr(call, name) for name in ARRAYS}, call._replace(**dict.fromkeys(ARRAYS))


def vary_data(call: Call) -> Call:
    """The call with all arrays but params varying along the same axes of a `shard_map`, if it is in one."""
    given = arrays_of(call)[0]
    axes = axes_of(given)
    return call._replace(**jax.tree.map(lambda a: vary(a, axes), given | {"params": None}) | {"params": call.params})


def shapes_of_one(call: Call) -> tuple[PyTree, PyTree, PyTree]:
    """The shapes that the step of a call is run with: params, state, x."""
    call, axes = vary_data(call), len(call.batch)
    return without_leading(call.params, 0), without_leading(call.state, axes), without_leading(call.xs, 1 + axes)


def close_step(call: Call) -> tuple[Callable, Leaves]:
    """`step(constants, params, state, x)` that closes over nothing, and the constants."""
    return graph.close(call.step, *shapes_of_one(call))


def close_loss(call: Call) -> tuple[Callable, Leaves]:
    """`loss(constants, output, target)` that closes over nothing, and the constants."""
    assert call.loss is not None
    output = jax.eval_shape(call.step, *shapes_of_one(call))[1]
    return graph.close(call.loss, output, without_leading(vary_data(call).targets, 1 + len(call.batch)))
