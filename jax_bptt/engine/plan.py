"""The plan: how a schedule is computed, where the user leaves it to us. All defaults, each with its measurement.

    whole      whether each step is one loop body, as `jax.grad` has it, or cut into its parts
    window     steps whose rows are done at once, the unit of saving and reversing
    save       what the forward pass keeps of every step
    lanes      windows of truncation side by side
    bodies     time steps in one body of the compiled loops

and, of products, whether weights are read transposed and which operand comes first.
"""

import math
from typing import Any, NamedTuple, TypedDict, Unpack

from jax_bptt.engine.platforms import AT_ONCE, Bodies
from jax_bptt.engine.schedule import Grid, Schedule
from jax_bptt.engine.step.partition import Recomputation
from jax_bptt.engine.step.traffic import Traffic
from jax_bptt.engine.windows import Windows
from jax_bptt.model import Save

SAVE_FROM = 60
"""Operations of products that it must take to compute a byte of residuals again for it to be saved.

(Measured on two CPU cores, H from 64 to 256, B from 1 to 128, exact and truncated: a GRU takes 3/8·H operations per
byte; an LSTM, whose h need not be saved then, 2/3·H. Below 60 the time was 0.94 to 1.20 of that with all saved, at a
fifth to two thirds of the memory; above, 1.00 to 1.18.)
"""

TRANSPOSE_FROM = 16
"""Examples from which on weights that stand before a vector are read from a transposed copy, small beside the states.

(A loop of products of [B, H] with a matrix of [H, G] took 0.75 to 0.95 of the time of those with the transpose of one
of [G, H], on two CPU cores, for B from 32 to 128 and H from 128 to 512.)
"""


MOVED_BY_ROWS = 0.75
"""What a byte that is moved of many rows at once counts, beside one that is moved in a loop.

(Measured on two CPU cores: an Elman cell of B = 128, H = 64, which moves 0.82 of the bytes whole, takes 1.5 times
as long then; a delta rule, a sparse recurrence and experts, at 0.67, took 0.79 to 0.85 of the time whole.)
"""


SIDE = 1.5
"""How many times the memory of a window of exact BPTT one takes that is run beside others.

(Where blocks of time are side by side, they are copied. Measured on two CPU cores, GRU of H = 128, B = 1: 16 KiB a
step, where 11 KiB are made of its row.)
"""


BODY_ON_GPU = 8
"""Time steps in a body of the loops on a GPU, where each body costs what it takes to launch it.

(Measured on an H200, JAX 0.11, three cells and four shapes: eight steps in a body, with states saved, took 0.33 to 0.7
of the time of one where steps are small, 0.9 where they are large. Not so on CPU, 1.0 to 1.3 times, and on TPU.)
"""

EQUATIONS_OF_A_BODY = 400
"""The most equations in a body on a GPU: a step of many is repeated less often, for the sake of compile time."""

AT_ONCE_FROM = 64
"""Steps of a loop from which on a linear recursion is solved at once on a GPU.

(Compiled for an H100, both recursions of minGRU take 30 to 35 kernels so, whatever T; in a loop over 64 steps, eight a
body, about as many. Nowhere else: on two CPU cores a loop took 0.36 to 0.85 of the time in four of six shapes, 1.2 and
1.3 in the others; H from 16 to 256, T from 512 to 4,096, B from 1 to 16, groups of eight steps.)
"""

MOST_AT_ONCE = 2**18
"""Bytes of a state of all examples up to which steps are solved at once: a loop over larger ones is not of launches.

Nor where the state is more than four times what comes in at a step, as that of a memory that is written with an outer
product: what would be written for all steps, a loop has in passing.
"""

STEPS_AT_ONCE = 256
"""The most steps of a window on a GPU in which δ is solved at once, and the state is not: rows are made of all."""

ROWS = 1024
"""Rows of a window, where every state is saved: enough for an efficient matrix product."""

ROWS_ON_GPU = 2048
"""Those of one on a GPU, whose products need more of them, and whose kernels are launched window by window.

No more than 64 steps, as elsewhere. (Compiled for an H100, elman and LSTM of B = 1, H = 512, windows of 64 and of 128
steps: the longer had 0.95 to 0.97 of the kernels, 0.81 to 1.04 of the launches, and 1.1 to 1.2 times the memory.)
"""


class Solvable(NamedTuple):
    """Which of the two recursions may be solved for all steps of a window at once."""

    backwards: bool = False  # that of δ
    forwards: bool = False  # that of the state


class Asked(TypedDict, total=False):
    """What the user asks of how it is computed; None, as what is not there, leaves it to us."""

    window: int | None
    save: Save | None
    lanes: int | None
    unroll: int | bool | None


def leaves_open(asked: Asked) -> bool:
    """Whether the user leaves all to us but how many steps are one body, which any plan may have."""
    return not any(value for name, value in asked.items() if name != "unroll")


class Plan(NamedTuple):
    """How a schedule is computed."""

    windows: Windows
    save: Save
    lanes: int  # windows of truncation side by side; 1 of exact BPTT
    whole: bool = False  # whether JAX differentiates one scan of whole steps


WHOLE = Plan(Windows(1, 1), "states", lanes=1, whole=True)
"""That of whole steps, of which there are no windows."""


def choose_plan(
    schedule: Schedule,
    rows: int,
    recomputation: Recomputation,
    once: bool = False,
    opaque: bool = False,
    traffic: Traffic | None = None,
    may_be_whole: bool = False,
    at_once: bool = True,
    **asked: Unpack[Asked],
) -> Plan:
    """The plan, as the user asked for it.

    Args:
        rows: how many rows a time step multiplies with a weight: the batch.
        once: whether there are values that may be made but once, so that states are saved where nothing should be.
        opaque: whether something costly that is no product would be done of rows: then of those of one step.
        traffic: what the step moves by either plan; None where the user tells the windows, or they overlap.
        may_be_whole: whether a scan of whole steps tells all that is asked for.
        at_once: whether forward and reverse pass are run together, so that a window can be run alone.
    """
    grid = schedule.grid
    ours = grid is None and not asked.get("window") and not opaque
    save = asked.get("save") or default_save(recomputation, schedule.steps if ours else None, rows)
    if once and save == "boundaries":
        save = "states"
    whole = may_be_whole and traffic is not None and is_better_whole(traffic)
    if grid is None:
        window = asked.get("window") or (1 if opaque and save != "boundaries" else None)
        return Plan(choose_windows(schedule.steps, rows, save, window, traffic), save, 1, whole)
    lanes = asked.get("lanes") or (1 if save == "boundaries" else default_lanes(grid, rows, traffic, at_once))
    return Plan(Windows(schedule.steps, grid.k1), save, min(grid.blocks, lanes), whole)


def default_bodies(equations: int) -> Bodies:
    """How many time steps are one body of the loops, of a step of so many equations."""
    return Bodies(gpu=max(1, min(BODY_ON_GPU, EQUATIONS_OF_A_BODY // max(1, equations))))


def bodies_over(steps: Any, bodies: Bodies, is_solvable: bool) -> Bodies:
    """How many time steps are one body of a loop over so many, which may be solved at once."""
    at_once = is_solvable and isinstance(steps, int) and steps >= AT_ONCE_FROM
    return bodies._replace(gpu=AT_ONCE) if at_once else bodies


def is_small(state: int, drive: int) -> bool:
    """Whether a state of so many bytes, into which so many come at a step, is one to be solved at once."""
    return state <= min(MOST_AT_ONCE, 4 * drive)


def on_gpu(
    plan: Plan, rows: int, body: int, is_exact: bool, solvable: Solvable = Solvable(), **asked: Unpack[Asked]
) -> Plan:
    """The same plan, but for what a GPU computes better otherwise, where the user leaves it to us.

    Where exact BPTT has several windows, they are of up to 64 steps and `ROWS_ON_GPU`, longer where recursions may be
    solved at once: of all steps, or, if only that of δ may, of up to `STEPS_AT_ONCE`. Products are cheap beside what is
    written and launched: states alone are saved, and residuals computed again, but where exact BPTT is one window.
    (Compiled for an H100, GRU and LSTM, windows of 32 steps run alone: 0.91 and 0.95 of the kernels that they have with
    "dots", at 1.09 and 1.36 times the memory.)

    Args:
        rows: as for `choose_plan`.
        body: time steps in one body of the loops.
        is_exact: whether it is of exact BPTT over all steps, whose windows are of our own choice.
        solvable: which of the recursions may be solved at once: then windows are longer.
    """
    steps, size = plan.windows.steps, plan.windows.size
    if not isinstance(steps, int) or plan.whole:
        return plan
    at_once = is_exact and solvable.backwards and steps >= AT_ONCE_FROM
    at_once &= not asked.get("window") and plan.save != "boundaries"
    if is_exact and size == steps and not at_once:
        return plan
    save = "states" if plan.save == "dots" and not asked.get("save") else plan.save
    if at_once:
        longest = steps if solvable.forwards else min(steps, STEPS_AT_ONCE)
        return plan._replace(save=save, windows=Windows(steps, max(size, longest)))
    if is_exact and not asked.get("window") and save == "states" and size == default_window(steps, rows):
        size = default_window(steps, rows, of_rows=ROWS_ON_GPU, body=body)
    return plan._replace(save=save, windows=Windows(steps, size))


def ask_alone(steps: int, rows: int, opaque: bool, save: Save | None) -> Asked:
    """What is asked of the plan of a window of truncation that is run alone, of so many steps.

    As many of them are done at once as would be of a long sequence, since nothing is saved of the other windows. Where
    the least memory is asked for, it is cut as a sequence by itself, if its rows are so many that they are more than
    the sums of weights which a loop over shorter windows carries; as such one, too, if it is opaque. (Measured on two
    CPU cores, T = 1024, k1 = k2 = 32, B = 32, H = 128: elman 72 ms, 3.2 MiB beside 92 ms, 2.8 MiB as of a sequence of
    its own; GRU 292 ms, 8.4 MiB beside 331 ms, 5.8 MiB.)
    """
    is_lean, save = save == "boundaries", None if save == "boundaries" else save
    if opaque or (is_lean and steps * rows > 512):
        return Asked(save=save)
    window = default_window(steps, rows, part_of=4 * steps)
    return Asked(window=window, save=save or ("dots" if window == steps else None))


def is_better_whole(traffic: Traffic) -> bool:
    """Whether a step is better one loop body: where rows gain nothing, or it moves, or saves, less then.

    (Measured on two CPU cores, of 35 kinds of step in `tests.benchmarks.kinds`, in windows of one and of two steps: of
    the 14 of which this is so, 8 were at 0.25 to 0.84 of the speed of `jax.grad` cut into parts; experts, a sparse
    recurrence and attention over a cache at 0.48 to 2.93, the better of the two above 1; the three with convolutions
    were not cut.)
    """
    return traffic.opaque or traffic.whole < MOVED_BY_ROWS * traffic.cut or traffic.saved_whole < traffic.saved_cut


def choose_windows(
    steps: int, rows: int, save: Save = "states", window: int | None = None, traffic: Traffic | None = None
) -> Windows:
    """How time is cut where nothing is truncated; not at all where the number of steps is symbolic."""
    if not isinstance(steps, int):
        return Windows(steps, steps)
    most = steps if traffic is None or save == "boundaries" else leanest_window(steps, traffic)
    return Windows(steps, min(steps, window or default_window(steps, rows, save, most)))


def default_save(recomputation: Recomputation, steps: int | None = None, rows: int = 1) -> Save:
    """Residuals too ("dots") where they take more work to compute again than `SAVE_FROM` tells, else "states".

    And where one window is all of the steps: they would be there again all at once. (GRU of 8 steps, two CPU cores:
    1.18 times as fast as `jax.grad` in 0.94 of the memory, by "states" 0.87 times in 1.00.)

    Args:
        steps: of how many steps a sequence is; None where its windows are not of our own choice.
        rows: of how many rows a time step is.
    """
    is_one_window = isinstance(steps, int) and default_window(steps, rows) == steps
    return "dots" if is_one_window or recomputation.operations >= SAVE_FROM * recomputation.bytes else "states"


def leanest_window(steps: int, traffic: Traffic) -> int:
    """The most steps in a window for which no more memory is taken than a scan of whole steps saves.

    (Of GRU and LSTM over 8 steps and spikes over 16, two CPU cores: 0.74 to 1.00 of the memory of `jax.grad`, where
    windows of 8 and 16 steps took 1.01 to 1.41, at 0.8 to 1.0 of their speed.)
    """
    spared = steps * (traffic.saved_whole - traffic.saved_cut)
    return max(1, int(spared / max(1.0, traffic.of_rows))) if spared > 0 else steps


def default_window(
    steps: int,
    rows: int,
    save: Save = "states",
    most: int | None = None,
    part_of: int | None = None,
    of_rows: int = ROWS,
    body: int = 1,
) -> int:
    """The number of steps in a window of so many, or of those, which are a part of more.

    Where every state is saved, about `of_rows` rows, but 16 to 64 steps and no more than a quarter of the sequence, so
    that what is computed about a window stays small beside what is saved of the sequence. (Measured with windows of 4
    to 128 on two CPU cores, elman and gru, B from 1 to 128, H from 64 to 256: within a tenth of the fastest size as a
    rule, where 64 steps at B = 128 take twice the memory.) Near √T where only the boundaries are saved: √T first states
    and √T recomputed ones, the least in sum.

    A size within a factor of two that divides T is preferred, so that all windows are alike, of those one that is a
    multiple of `body`, as the size is where none divides T; never one above `most`.
    """
    many = max(16, min(64, of_rows // rows, (part_of or steps) // 4))
    wanted = max(1, round(math.sqrt(steps))) if save == "boundaries" else many
    most = steps if most is None else min(most, steps)
    wanted = min(wanted, most)
    near = [size for size in range((wanted + 1) // 2, min(2 * wanted, most) + 1) if steps % size == 0]
    return min(
        near, key=lambda size: (size % body > 0, abs(math.log(size / wanted))), default=wanted - wanted % body or wanted
    )


def default_lanes(grid: Grid, rows: int, traffic: Traffic | None = None, at_once: bool = True) -> int:
    """The number of windows of truncation side by side.

    As many as make 32 rows in a hop. Where the batch alone has 8, windows that meet are run one after the other; where
    it has 32, of windows that overlap still two, and four times as many as each reaches back over, so that little is
    done twice where two groups meet, but no more than a quarter of all, so that what is computed about a group stays
    small beside what is saved of the sequence. (Measured with 1 to 128 windows on two CPU cores, elman and gru,
    T = 1024, B = 1 and 32, H from 128 to 512, k1 = k2 = 32 and k1 = 8, k2 = 32: more windows were hardly faster, and
    took up to ten times the memory; fewer rows were slower by a third. One after the other, k1 = k2 of 1 to 128 steps,
    B from 8 to 128, took 0.75 to 1.25 times as long as side by side, in a fifth to a hundredth of the memory.)

    Args:
        traffic: what a step moves, if no more memory is to be taken than a scan over windows takes.
        at_once: as for `choose_plan`.
    """
    if grid.alone and at_once:
        if rows >= 8:
            return 1
        most = grid.blocks if traffic is None else int(leanest_window(grid.steps, traffic) / SIDE / grid.k1)
        return max(1, min(grid.blocks, most, -(-32 // rows)))
    for_memory = max(1 + grid.reach, grid.blocks // 4)
    return min(grid.blocks, max(-(-32 // rows), min(max(2, 4 * grid.reach), for_memory)))


def narrow_first(left: int, right: int) -> bool:
    """Whether the product of [R, left]ᵀ and [R, right], of R rows, is better than its transpose.

    (With the narrower operand first it took 0.4 to 0.96 of the time of its transpose, on two CPU cores, R from 64 to
    1024, the narrower from 32 to 512, the other from two to sixteen times as wide.)
    """
    return left <= right
