"""What is promised of every program, and the floors that ours are held to beside scans written by hand."""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

from .program import Loop, Op, Program, elements, loop

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


class Figures(NamedTuple):
    """What there is to tell of a program."""

    kernels: int
    memory: float  # temporary, in MiB
    launches: int = 0  # on GPU
    cycles: float = 0.0  # on TPU, in millions


FLOORS = {"gpu": {"kernels": 0.85, "launches": 2.5, "memory": 0.55}, "tpu": {"cycles": 0.85}}
"""How much of the better of the scans the exact gradient may take, by default, of each."""


def above_floors(target: str, ours: Figures, scans: Sequence[Figures]) -> list[str]:
    """Where a program takes more than it may."""
    found = []
    for name, floor in FLOORS[target].items():
        share = getattr(ours, name) / min(getattr(scan, name) for scan in scans)
        found += [f"{name}: {share:.2f} of the better scan, at most {floor}"] if share > floor else []
    return found


AT_ONCE = {"kernels": 1200, "growth": 1.6}
"""The most kernels that a gradient takes which is solved for all steps at once, and how much it may grow with them."""


def above_at_once(kernels: Sequence[int]) -> list[str]:
    """Where it takes more, of so many kernels for fewer and more steps."""
    growth = max(kernels) / kernels[0]
    told = {
        f"{max(kernels)} kernels, at most {AT_ONCE['kernels']}": max(kernels) > AT_ONCE["kernels"],
        f"kernels grow by {growth:.2f}, at most {AT_ONCE['growth']}": growth > AT_ONCE["growth"],
    }
    return [what for what, is_broken in told.items() if is_broken]


def broken(program: Program, whole: Loop, steps: int, batch: int) -> list[str]:
    """What the library promises and this program does not do."""
    kinds = collections.Counter(op.kind for ops in program.computations.values() for op in ops)
    found = [f"{kinds[k]} × {k}" for k in ("conditional", "gather", "scatter", "sort") if kinds[k]]
    for depth, inner in whole.nested():
        if depth and not inner.known:
            found.append("a loop whose trip count the compiler does not know")
        for op in inner.kernels if depth and not inner.loops else []:
            arrays = re.findall(rf"[a-z]\w*\[(?:{steps}|{steps + 1}),[\d,]*\]", op.shape)
            if sum(elements(array) >= steps * batch for array in arrays) > _updates(program, op):
                found.append(f"{op.kind} of {op.shape} in a time step")
    return found


def _updates(program: Program, op: Op) -> int:
    """How many of the arrays that an op returns it writes a part of, in place."""
    if op.kind == "copy-start":
        return 1  # its second array is what it copies
    if op.kind in ("slice-start", "dynamic-slice-start"):
        return elements(op.shape)  # a part is all it makes; beside it stands what it is a part of
    return (op.kind == "dynamic-update-slice") + sum(
        _updates(program, inner) for name in op.calls("calls") for inner in program.computations[name]
    )


def moved(program: Program) -> list[str]:
    """What a program moves between devices beside one sum after the last loop."""
    found, sums = [], 0
    for depth, inner in loop(program, program.entry).nested():
        for op in inner.kernels:
            if op.kind.startswith("all-reduce") and not depth:
                sums += 1
            elif op.kind.startswith(COLLECTIVES):
                found.append(f"{op.kind} at depth {depth}")
    return found + ([] if sums == 1 else [f"{sums} all-reduces"])
