"""What a compiled program makes a device do: its optimised and scheduled HLO, as it is read.

program = read(text, target)
whole   = loop(program, program.entry)      kernels and loops, as often as they run
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple


class Op(NamedTuple):
    name: str
    shape: str
    kind: str
    operands: list[str]
    attributes: str

    def calls(self, *names: str) -> list[str]:
        found = re.findall(rf"(?:{'|'.join(names)})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [name for group in found for name in re.findall(r"[\w.\-]+", group)]


class Program(NamedTuple):
    """An optimised and scheduled HLO module: the ops of each computation, in order."""

    computations: dict[str, list[Op]]
    entry: str
    target: str


def read(text: str, target: str) -> Program:
    """Parse the text of a module."""
    computations: dict[str, list[Op]] = {}
    entry, ops = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            ops = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif op := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            shape, rest = _first(op[2])
            kind = re.match(r"[\w\-]+", rest)[0]
            operands, attributes = _first(rest[len(kind) :])
            ops.append(Op(op[1], shape, kind, re.findall(r"%([\w.\-]+)", operands), operands + attributes))
    return Program(computations, entry, target)


def _first(text: str) -> tuple[str, str]:
    """What is in the parentheses that a text begins with, or its first word; and the rest."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :].lstrip()
    raise ValueError(text)


def elements(shape: str) -> int:
    """The number of entries of an array, or of the largest of several."""
    arrays = re.findall(r"[a-z]\w*\[([\d,]*)\]", shape)
    return max((math.prod(map(int, filter(None, dims.split(",")))) for dims in arrays), default=0)


NOTHING = re.compile(
    "tuple|get-tuple-element|parameter|constant|bitcast|after-all|partition-id|replica-id|add-dependency|opt-barrier"
    "|async-update|.*-done"
)
"""Ops that make a device do nothing, or are the ends of what other ops began."""


class Loop(NamedTuple):
    """What one run of a computation makes the device do."""

    trips: int
    known: bool
    """Whether the compiler knows how often it runs."""
    runs: list[Any]
    """In order: kernels, as ops, and loops."""

    @property
    def kernels(self) -> list[Op]:
        return [run for run in self.runs if isinstance(run, Op)]

    @property
    def loops(self) -> "list[Loop]":
        return [run for run in self.runs if isinstance(run, Loop)]

    def total(self) -> int:
        """Kernels, those of loops as often as they run."""
        return len(self.kernels) + sum(loop.trips * loop.total() for loop in self.loops)

    def cycles(self) -> int:
        """Those that the compiler for TPU expects."""
        own = [re.search(r'"estimated_cycles":"(\d+)"', op.attributes) for op in self.kernels]
        return sum(int(m[1]) for m in own if m) + sum(loop.trips * loop.cycles() for loop in self.loops)

    def steps(self) -> "Iterator[tuple[int, Loop]]":
        """The innermost loops, and how often their bodies run in all."""
        for loop in self.loops:
            if loop.loops:
                yield from ((loop.trips * n, inner) for n, inner in loop.steps())
            else:
                yield loop.trips, loop

    def nested(self, depth: int = 0) -> "Iterator[tuple[int, Loop]]":
        """This loop and those in it, with their depths."""
        yield depth, self
        for loop in self.loops:
            yield from loop.nested(depth + 1)


def launches(sequence: str, whole: Loop) -> int:
    """What the host launches on GPU, by XLA's list of it, in which a CUDA graph is one launch."""
    trips = iter([inner.trips for depth, inner in whole.nested() if depth])
    count, inside, condition = 0, [(-1, 1)], False
    for line in sequence.splitlines():
        if "condition:" in line or "body:" in line:
            condition = "condition:" in line  # which is not run where the trip count is known
        elif (entry := re.match(r"( *)\d+: (\w+)", line)) and not condition:
            depth = len(entry[1])
            while inside[-1][0] >= depth:
                inside.pop()
            times = inside[-1][1]
            if entry[2] == "kWhile":
                inside.append((depth, times * next(trips)))
                continue
            count += times
            if entry[2] in ("kCommandBuffer", "kDynamicSliceFusion"):
                inside.append((depth, 0))
    return count


def loop(program: Program, name: str, trips: int = 1, known: bool = True) -> Loop:
    """What a computation makes the device do."""
    runs: list[Any] = []
    for op in program.computations[name]:
        if op.kind == "while":
            runs.append(loop(program, *op.calls("body"), *_trips(program, op)))
        elif op.kind == "call":
            runs.extend(loop(program, op.calls("to_apply")[0]).runs)
        elif op.kind == "conditional":
            branches = op.calls("branch_computations", "true_computation", "false_computation")
            runs.extend(max((loop(program, b) for b in branches if b in program.computations), key=Loop.total).runs)
        elif not NOTHING.fullmatch(op.kind) and not _is_free(program, op):
            runs.append(op)
    return Loop(trips, known, runs)


def _is_free(program: Program, op: Op) -> bool:
    if op.kind == "custom-call":
        return re.search('custom_call_target="(AllocateBuffer|ConcatBitcast|Sharding)"', op.attributes) is not None
    on_scalar_core = program.target == "tpu" and elements(op.shape) <= 1
    return on_scalar_core and op.kind not in ("fusion", "reduce", "dynamic-slice", "dynamic-update-slice")


def _trips(program: Program, op: Op) -> tuple[int, bool]:
    """How often a loop runs, and whether the compiler knows it: told on GPU; on TPU, a counter beside a constant."""
    if told := re.search(r'known_trip_count":\{"n":"(\d+)"', op.attributes):
        return int(told[1]), True
    condition = program.computations[op.calls("condition")[0]]
    numbers = [re.match(r"\((\d+)\)", inner.attributes) for inner in condition if inner.kind == "constant"]
    counts = {inner.kind for inner in condition} <= {"parameter", "get-tuple-element", "constant", "compare"}
    if program.target == "tpu" and counts and len(numbers) == 1 and numbers[0]:
        return int(numbers[0][1]), True
    return 1, False
