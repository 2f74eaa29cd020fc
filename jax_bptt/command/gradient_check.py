"""Two gradients side by side, of the same arguments: how far apart, how fast, how much temporary memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import numpy as np

Gradient = Callable[..., tuple[Any, Any]]
"""A gradient function: `gradient(params, state, xs, targets) -> ((loss, state), grads)`."""


class Cost(NamedTuple):
    """What a compiled function costs."""

    seconds: float  # the median over the repeats
    temporary_bytes: int  # beside arguments and results, as the compiler allots it; 0 where a backend does not tell


class Comparison(NamedTuple):
    """One gradient beside another."""

    differences: dict[str, float]  # per leaf of the gradients: max |a − b| / max |b|
    cost: Cost
    other: Cost


def compare_gradients(gradient: Gradient, other: Gradient, *arguments: Any, repeats: int = 5) -> Comparison:
    """Compile both, and run them in turns: once, and then `repeats` times with a clock."""
    compiled = [jax.jit(lambda *call, g=g: g(*call)[1]).lower(*arguments).compile() for g in (gradient, other)]
    ours, theirs = (jax.block_until_ready(f(*arguments)) for f in compiled)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for f, times in zip(compiled, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            times.append(time.perf_counter() - start)
    memories = [memory.temp_size_in_bytes if (memory := f.memory_analysis()) else 0 for f in compiled]
    costs = [Cost(statistics.median(times), memory) for times, memory in zip(seconds, memories, strict=True)]
    differences = {
        jax.tree_util.keystr(path, simple=True, separator="."): relative_difference(a, b)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    }
    return Comparison(differences, *costs)


def distance(gradient: Gradient, other: Gradient, *arguments: Any) -> tuple[float, float, float]:
    """The cosine of two gradients, the norm of the first and that of their difference, relative to the other's norm."""
    a, b = (jax.flatten_util.ravel_pytree(jax.jit(g)(*arguments)[1])[0] for g in (gradient, other))
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    return float(a @ b / (norm_a * norm_b)), float(norm_a / norm_b), float(np.linalg.norm(a - b) / norm_b)


def relative_difference(a: Any, b: Any) -> float:
    """max |a − b| / max |b|, 0 where both are 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    largest = np.abs(a - b).max(initial=0)
    return float(largest / np.abs(b).max(initial=0)) if largest else 0.0
