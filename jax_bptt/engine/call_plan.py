"""The plan of a call: what `plan` goes by, read off the call."""

import math
from collections.abc import Sequence
from typing import Unpack

from jax_bptt.engine.flatten import FlatCall
from jax_bptt.engine.leaves import Leaves, accumulator, concrete, only, shape_like
from jax_bptt.engine.plan import Asked, Plan, choose_plan, default_save, leaves_open
from jax_bptt.engine.schedule import Schedule
from jax_bptt.engine.step.traffic import Traffic, weigh
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Save


def plan_of(
    flat: FlatCall,
    schedule: Schedule,
    reads: Sequence[bool] | None = None,
    may_be_whole: bool = True,
    weighed: bool = True,
    at_once: bool = True,
    **asked: Unpack[Asked],
) -> Plan:
    """The plan of a recurrence's passes.

    Args:
        reads: per leaf of the outputs whether anything depends on it; None: on all.
        may_be_whole: whether nothing is asked for that a scan of whole steps does not tell.
        weighed: whether it depends on what a step moves.
        at_once: whether forward and reverse pass are run together, so that a window can be run alone. Else nothing is
            weighed, since with other cotangents a step moves something else.
    """
    recurrence, parts, pullback = flat.recurrence, flat.recurrence.parts, flat.recurrence.pullback
    may_be_whole &= sums_lose_nothing(flat.wrt_params) and isinstance(schedule.steps, int)
    meet = schedule.grid is None or schedule.grid.alone
    is_weighed = weighed and at_once and meet and leaves_open(asked)
    save = default_save(pullback.recomputation, schedule.steps if schedule.grid is None else None, recurrence.rows)
    traffic = traffic_of(flat, save, reads) if is_weighed else None
    of_step = pullback.recomputation, bool(parts.once), parts.opaque
    return choose_plan(schedule, recurrence.rows, *of_step, traffic, may_be_whole, at_once, **asked)


def sums_lose_nothing(params: Leaves) -> bool:
    """Whether JAX sums up the gradients of these, which are of their dtypes, in at least single precision."""
    return all(p is None or accumulator(p.dtype) == p.dtype for p in params)


def traffic_of(flat: FlatCall, save: Save, reads: Sequence[bool] | None = None) -> Traffic:
    """What a time step of a call moves, of which so much is saved; `reads` as for `plan_of`."""
    recurrence, pullback = flat.recurrence, flat.recurrence.pullback
    x = without_leading(flat.inputs.x, 1 + len(recurrence.batch))
    shapes = [shape_like(w) for w in recurrence.weights], recurrence.state, x
    wanted, examples = (flat.wrt.weights, only(flat.wrt.xs, x)), concrete(math.prod(recurrence.batch))
    return weigh(recurrence.parts, pullback, shapes, wanted, reads, examples, save)
