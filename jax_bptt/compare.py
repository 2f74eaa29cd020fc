"""Two gradient functions side by side on the same arguments: how far apart, how fast, how much temporary memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Cost(NamedTuple):
    """What a compiled function costs."""

    seconds: float
    """The median over the repeats."""
    temporary_bytes: int
    """Memory beside arguments and results, as the compiler allots it; 0 where a backend does not tell."""


class Comparison(NamedTuple):
    """One function beside another."""

    differences: dict[str, float]
    """Per leaf of what they return: max |a − b| / max |b|."""
    cost: Cost
    other: Cost


def compare(function: Callable, other: Callable, *arguments: Any, repeats: int = 5) -> Comparison:
    """Compile both functions and run them in turns.

    Args:
        function, other: of the same arguments, returning pytrees of the same structure.
        arguments: what both are called with.
        repeats: how often each is timed, after a first run that is not.
    """
    compiled = [jax.jit(f).lower(*arguments).compile() for f in (function, other)]
    ours, theirs = (jax.block_until_ready(f(*arguments)) for f in compiled)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for f, times in zip(compiled, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            times.append(time.perf_counter() - start)
    costs = [
        Cost(statistics.median(times), memory.temp_size_in_bytes if (memory := f.memory_analysis()) else 0)
        for f, times in zip(compiled, seconds, strict=True)
    ]
    differences = {
        jax.tree_util.keystr(path, simple=True, separator="."): relative_difference(a, b)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    }
    return Comparison(differences, *costs)


def relative_difference(a: Any, b: Any) -> float:
    """max |a − b| / max |b|, 0 where both are 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    largest = np.abs(a - b).max(initial=0)
    return float(largest / np.abs(b).max(initial=0)) if largest else 0.0
