"""python -m tests.benchmarks.gpu: the cells, and what is solved at once, timed on a GPU in a few minutes.

Exact gradients by ours, by `jax.grad` of `lax.scan` and of `lax.scan(unroll=8)`, and of the latter with the products
of inputs and outputs taken out by hand; and by `jb.artbp`, of which nothing is cut. All programs are compiled side by
side first, so that the seconds it took are more than one takes alone, then timed in turns.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

import jax_bptt as jb

from . import peers
from .kinds import kinds
from .measure import Contender, compiled, measure
from .shapes import CELLS, ON_A_DEVICE, QUICK

STEPS, ROWS = (512, 2048, 4096), 4
"""T and B of what is solved at once, with as many units as of the cells' first shape."""

Row = tuple[str, tuple[Any, ...], dict[str, Any]]  # what it is called, arguments, gradients by name


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table: milliseconds, MiB, and times as long as ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed (default 9)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args(argv)
    rows = [*_of_cells(options.quick), *_at_once(options.quick)]
    with ThreadPoolExecutor(8) as pool:
        built = [
            (title, [pool.submit(compiled, name, of, args, _picked) for name, of in gradients.items()])
            for title, args, gradients in rows
        ]
        ready = [(title, [future.result() for future in futures]) for title, futures in built]
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}: ms, MiB, compile time in s; (times as long as ours)")
    for title, contenders in ready:
        print(f"| {title} | " + " | ".join(_told(contenders, options.repeats)) + " |", flush=True)


def _told(contenders: list[Contender], repeats: int) -> Iterator[str]:
    ours, *others = measure(contenders, repeats)
    for of in (ours, *others):
        memory, compiling = (of.temporary_bytes or 0) / 2**20, of.compile_seconds or 0
        ratio = "" if of is ours else f" ({of.seconds / ours.seconds:.2f})"
        yield f"{of.name}: {1e3 * of.seconds:.2f}, {memory:.1f}, {compiling:.0f}{ratio}"


def _picked(result: Any) -> tuple[Any, ...]:
    return result[0][0], *jax.tree.leaves(result[1])


def _of_cells(quick: bool) -> Iterator[Row]:
    for T, B, I, H, O in QUICK if quick else ON_A_DEVICE:
        for cell in CELLS[: 1 if quick else None]:
            model, keys = getattr(jb.cells, cell)(I, H, O), jax.random.split(jax.random.key(0), 3)
            xs, targets = jax.random.normal(keys[1], (T, B, I)), jax.random.normal(keys[2], (T, B, O))
            gradients = {
                "ours": jb.bptt(model, jb.losses.squared_error),
                "scan": peers.jax_grad(peers.rows(cell)),
                "scan, unroll 8": peers.jax_grad(peers.rows(cell), unroll=8),
                "hoisted, unroll 8": peers.hoisted(cell, unroll=8),
                "artbp, k1 = 8": functools.partial(_cut_at_random, model),
            }
            yield (
                f"{cell} | {T}, {B}, {I}, {H}, {O}",
                (model.init(keys[0]), model.initial_state(B), xs, targets),
                gradients,
            )


def _cut_at_random(model: jb.Cell, *args: Any) -> Any:
    return jb.artbp(model, jb.losses.squared_error, 8, 0.0)(*args, key=jax.random.key(0))


def _at_once(quick: bool) -> Iterator[Row]:
    """Gated and complex linear recurrences, whose states and δ are solved for all steps at once."""
    I, H, O = (4, 8, 4) if quick else (64, 256, 32)
    steps = {kind.name: kind.step for kind in kinds()}
    key = jax.random.key(0)

    def normal(*shape: int) -> jax.Array:
        return 0.1 * jax.random.normal(key, shape)

    of_lru = {"B": normal(H, I), "D": normal(H, I), "C": normal(O, H), "E": normal(O, H)}
    models = {
        "minGRU": ({"z": normal(H, I), "h": normal(H, I), "C": normal(O, H)}, jnp.zeros((ROWS, H))),
        "LRU": (of_lru | {"decay": normal(H), "turn": normal(H)}, jnp.zeros((ROWS, 2, H))),
    }
    for T in (70,) if quick else STEPS:
        for name, (params, state) in models.items():
            batched = jax.vmap(steps[name], in_axes=(None, 0, 0))
            gradients = {
                "ours": jb.bptt(steps[name], jb.losses.squared_error),
                "scan": peers.jax_grad(batched),
                "scan, unroll 8": peers.jax_grad(batched, unroll=8),
            }
            yield (
                f"{name} | {T}, {ROWS}, {I}, {H}, {O}",
                (params, state, normal(T, ROWS, I), normal(T, ROWS, O)),
                gradients,
            )


if __name__ == "__main__":
    main()
