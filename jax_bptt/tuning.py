"""Which way of computing a gradient is the fastest here: measured on the user's own arguments, under a limit of memory.

Every way gives the same gradient. The defaults are chosen by rule, from sizes alone; where a program runs for days, a
minute of measuring tells what rules cannot know of a step and of a machine.
"""

import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from jax_bptt.checks.options import check_count, describe
from jax_bptt.model import PyTree

CANDIDATES: Mapping[str, Sequence[Any]] = {
    "save": (None, "dots", "states", "boundaries"),
    "window": (None, 4, 16, 64, 256),
    "parallel": (None, 1, 4, 16, 64),
}
"""What is tried of each option, None being what is chosen by rule."""


class Measurement(NamedTuple):
    """One way of computing the gradient."""

    options: dict[str, Any]
    seconds: float | None  # the median; None where it takes too much memory, so that it was not run
    temporary_bytes: int | None  # None where the device does not tell
    compile_seconds: float  # tracing included


class Tuned(NamedTuple):
    """The options of the fastest way, and all that was measured; `str` tells it as a table."""

    options: dict[str, Any]
    table: tuple[Measurement, ...]  # empty where the options come from a cache

    def __str__(self) -> str:
        rows = [("options", "time", "memory", "compile time")]
        for one in self.table:
            seconds = "not run" if one.seconds is None else f"{one.seconds * 1e3:.2f} ms"
            memory = "unknown" if one.temporary_bytes is None else f"{one.temporary_bytes / 2**20:.2f} MiB"
            rows.append((_told(one.options), seconds, memory, f"{one.compile_seconds:.2f} s"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"fastest: {_told(self.options)}", *(table if self.table else [])])


def tune(
    make: Callable[..., Callable[..., Any]],
    *args: PyTree,
    memory: int | None = None,
    candidates: Mapping[str, Sequence[Any]] | None = None,
    repeats: int = 5,
    cache: MutableMapping[str, dict[str, Any]] | None = None,
    progress: Callable[[Measurement], None] | None = None,
) -> Tuned:
    """Measure the ways in which a gradient can be computed, and return the options of the fastest.

        make = functools.partial(jb.bptt, model, loss)
        tuned = jb.tune(make, params, state, xs, targets, memory=2**30)
        gradient = make(**tuned.options)

    One option after the other is tried, those before it being what was best: first the defaults, then `save`, `window`
    and `parallel`, as far as `make` has them. Candidates of one option are compiled, and then run in turns.

    Args:
        make: `make(**options)` returns a function that is called with `args`: a gradient function's maker with model
            and loss, or any function of such options around `scan` or `unroll`.
        args: what the functions are called with, arrays of the shapes and on the devices that they are meant for.
        memory: the most bytes of temporary memory that the compiled program may take; what takes more is not run.
        candidates: what to try of each option; None: `CANDIDATES`, of those that are in `make`'s signature.
        repeats: how often each is timed.
        cache: options that were found before, and are added to, by device, version of JAX, shapes, candidates and
            limit of memory: one for each model, which it does not know. Its values are plain, to be kept as JSON.
        progress: called with each measurement when it has been made, which are those of one option at a time.

    Returns:
        A `Tuned`: its `options` leave out what is best left to the defaults.

    Raises:
        TypeError, ValueError: for an argument that is not of this form, where no way takes as little memory, and for a
            limit of memory where the device does not tell what a program takes.
    """
    _check(make, args, memory, candidates)
    check_count("repeats", repeats)
    tried = _candidates_of(make) if candidates is None else candidates
    key = f"{_place()}, memory {memory}, {dict(tried)}, {_shapes(args)}"
    if cache is not None and key in cache:
        return Tuned(dict(cache[key]), ())
    table: list[Measurement] = []
    best = Measurement({}, None, None, 0)
    for name, values in ({"": [None]} | dict(tried)).items():
        ways = [best.options | ({} if value is None else {name: value}) for value in values]
        found = _measure(make, [way for way in ways if all(way != one.options for one in table)], args, memory, repeats)
        if progress is not None:
            for one in found:
                progress(one)
        table += found
        best = min(table, key=_rank)
    if best.seconds is None:
        raise ValueError(
            f"memory: found a limit of {memory} bytes, expected at least {best.temporary_bytes}, which is what the "
            f"leanest way takes ({_told(best.options)})"
        )
    if cache is not None:
        cache[key] = dict(best.options)
    return Tuned(best.options, tuple(table))


def _check(make: Any, args: tuple[PyTree, ...], memory: Any, candidates: Any) -> None:
    if not callable(make):
        raise TypeError(f"make: found {describe(make)}, expected a function make(**options) that returns a function")
    if memory is not None:
        check_count("memory", memory)
    if candidates is not None and not isinstance(candidates, Mapping):
        raise TypeError(f"candidates: found {describe(candidates)}, expected a mapping from options to what to try")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
        raise TypeError("args: found values that are being traced, expected arrays: call tune outside of jax.jit")


def _candidates_of(make: Callable[..., Any]) -> dict[str, Sequence[Any]]:
    """Of the options that are tried by default those that a function has."""
    parameters = inspect.signature(make).parameters.values()
    named = {one.name for one in parameters}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        named |= CANDIDATES.keys()
    return {name: values for name, values in CANDIDATES.items() if name in named}


def _measure(
    make: Callable[..., Callable[..., Any]],
    ways: Sequence[dict[str, Any]],
    args: tuple[PyTree, ...],
    memory: int | None,
    repeats: int,
) -> list[Measurement]:
    """All of them, compiled one after the other and run in turns."""
    programs, found = [], []
    for options in ways:
        start = time.perf_counter()
        program = jax.jit(make(**options)).lower(*args).compile()
        seconds, analysis = time.perf_counter() - start, program.memory_analysis()
        programs.append(program)
        found.append(Measurement(options, None, analysis.temp_size_in_bytes if analysis else None, seconds))
    if memory is not None and any(one.temporary_bytes is None for one in found):
        raise ValueError(
            f"memory: found a limit of {memory} bytes, expected none: the device tells no program's memory"
        )
    runs = [i for i, one in enumerate(found) if memory is None or (one.temporary_bytes or 0) <= memory]
    times: dict[int, list[float]] = {i: [] for i in runs}
    for _, i in itertools.product(range(repeats + 1), runs):  # the first time each is warmed up
        start = time.perf_counter()
        jax.block_until_ready(programs[i](*args))
        times[i].append(time.perf_counter() - start)
    return [one._replace(seconds=statistics.median(times[i][1:])) if i in times else one for i, one in enumerate(found)]


def _rank(one: Measurement) -> tuple[bool, float]:
    """What was run before what takes too much memory; of the former the fastest first, of the latter the leanest."""
    return one.seconds is None, (one.temporary_bytes or 0) if one.seconds is None else one.seconds


def _told(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "defaults"


def _place() -> str:
    device = jax.devices()[0]
    return f"{device.platform} {device.device_kind}, jax {jax.__version__}"


def _shapes(tree: PyTree) -> str:
    def told(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else repr(leaf)

    return str(jax.tree.map(told, tree))
