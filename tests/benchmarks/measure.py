"""Time, memory and compile time of contenders, in turns."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.command.gradient_check import relative_difference


class Contender(NamedTuple):
    name: str
    run: Callable[[], Any]
    """Computes the gradient once, and returns when it is there."""
    pick: Callable[[Any], tuple[Any, ...]]
    """What is compared of what `run` returns: loss and some gradient."""
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


class Measured(NamedTuple):
    name: str
    seconds: float
    compile_seconds: float | None
    temporary_bytes: int | None
    difference: float
    """The largest relative difference to what the first contender returns."""


def compiled(name: str, function: Callable, args: tuple, pick: Callable[[Any], tuple[Any, ...]]) -> Contender:
    """A jitted function as a contender."""
    start = time.perf_counter()
    run = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = run.memory_analysis()
    return Contender(
        name, lambda: jax.block_until_ready(run(*args)), pick, seconds, memory.temp_size_in_bytes if memory else None
    )


def measure(contenders: Sequence[Contender], repeats: int) -> list[Measured]:
    """The median time of each over the repeats, one after the other in each; all have run once before.

    Each repeat has an order of its own. (In one and the same order, whoever came after PyTorch, whose threads go on
    spinning for a while, took up to twice as long.)
    """
    results = [contender.pick(contender.run()) for contender in contenders]
    seconds = [[] for _ in contenders]
    orders = random.Random(0)
    for _ in range(repeats):
        for i in orders.sample(range(len(contenders)), len(contenders)):
            start = time.perf_counter()
            contenders[i].run()
            seconds[i].append(time.perf_counter() - start)
    return [
        Measured(
            contender.name,
            statistics.median(times),
            contender.compile_seconds,
            contender.temporary_bytes,
            max(relative_difference(a, b) for a, b in zip(result, results[0], strict=True)),
        )
        for contender, times, result in zip(contenders, seconds, results, strict=True)
    ]


def product_rate(repeats: int) -> float:
    """Floating-point operations a second of a product of float32 matrices of 2048 × 2048, the fastest of them."""
    n = 2048
    a = jnp.ones((n, n), jnp.float32)
    product = compiled("product", lambda a: a @ a, (a,), lambda product: (product[0, 0],))
    return 2 * n**3 / min(measure([product], 1)[0].seconds for _ in range(3 * repeats))
