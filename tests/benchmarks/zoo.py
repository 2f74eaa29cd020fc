"""python -m tests.benchmarks.zoo: kinds of step as people have them, by `jax.grad` of `lax.scan` and by us, in turns.

Told are medians of time, temporary memory and compile time (tracing included) of loss and gradient with respect to the
params; then speed and memory beside `jax.grad`, and speed beside the best `unroll` of its scan. A floor that is missed
is named: a speed below 0.95, a memory above 1.05, a compile time above 2.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jax_bptt as jb
from tests.benchmarks.kinds import Kind, kinds
from tests.benchmarks.measure import compiled, measure

ELSEWHERE = 1e-2
"""How far gradients may be apart where products are of lower precision by default."""
UNROLLED = (4, 8)
MOST_LEAVES = 30  # of a state that is unrolled: XLA takes minutes to compile several steps of sixty


class Ratios(NamedTuple):
    """Of a kind, beside `jax.grad` of `lax.scan`."""

    speed: float
    memory: float
    compile_time: float

    def missed(self) -> str:
        """Which floors are missed."""
        floors = {"slow": self.speed < 0.95, "fat": self.memory > 1.05, "compile time": self.compile_time > 2}
        return ", ".join(name for name, is_missed in floors.items() if is_missed)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table.

    Raises:
        SystemExit: if two ways find different gradients, or an option is not known.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.zoo", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="how often each is timed (default 7)")
    parser.add_argument("--only", default="", help="kinds whose name has this in it; all by default")
    parser.add_argument(
        "--scan", action="store_true", help="batch-written bodies by jb.scan; by default steps by jb.bptt"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that all run and agree")
    options = parser.parse_args(argv)
    print("| kind | jax.grad | ours | speed, memory, compile time | beside the best unroll | missed |")
    print("|---|---|---|---|---|---|")
    found = []
    for kind in kinds():
        if options.only in kind.name:
            smaller = kind._replace(T=6, B=2) if options.quick else kind
            ratios, line = _row(smaller, options.scan, 1 if options.quick else options.repeats)
            found.append(ratios)
            print(line, flush=True)
    if found:
        means = (math.exp(sum(map(math.log, of)) / len(found)) for of in zip(*found, strict=True))
        print("geometric means of speed, memory, compile time: " + ", ".join(f"{mean:.2f}" for mean in means))


def mean_square(output: Any, _: None = None) -> jax.Array:
    """A loss: of each leaf the mean of its squares."""
    return jnp.stack([jnp.square(leaf.astype(jnp.float32)).mean() for leaf in jax.tree.leaves(output)]).sum()


def by(scan: Callable, kind: Kind) -> Callable:
    """Loss and gradient of a body that is written for a batch, by that scan."""

    def loss(params: Any, state: Any, xs: Any) -> tuple[jax.Array, Any]:
        step = jax.vmap(kind.step, (None, 0, None if xs is None else 0))

        def body(state: Any, x: Any) -> tuple[Any, jax.Array]:
            state, output = step(params, state, x)
            return state, jax.vmap(mean_square)(output).sum()

        state, losses = scan(body, state, xs, kind.T)
        return losses.sum(), state

    return jax.value_and_grad(loss, has_aux=True)


def by_bptt(kind: Kind) -> Callable:
    """Loss and gradient of a step of one example."""
    gradient = jb.bptt(kind.step, mean_square)
    return lambda params, state, xs: gradient(params, state, xs, length=kind.T)


def unrolled(steps: int) -> Callable:
    """`lax.scan` with so many steps in a loop body."""
    return lambda body, state, xs, length: jax.lax.scan(body, state, xs, length, unroll=steps)


def _row(kind: Kind, through_scan: bool, repeats: int) -> tuple[Ratios, str]:
    ours = by(jb.scan, kind) if through_scan else by_bptt(kind)
    ways = {"jax.grad": by(jax.lax.scan, kind), "ours": ours}
    if len(jax.tree.leaves(kind.state)) <= MOST_LEAVES:
        ways |= {f"unroll {n}": by(unrolled(n), kind) for n in UNROLLED if n < kind.T}
    arguments = kind.arguments()
    made = [compiled(name, way, arguments, _loss_and_gradient) for name, way in ways.items()]
    theirs, mine, *others = measure(made, repeats)
    if not mine.difference <= (kind.tolerance if jax.default_backend() == "cpu" else max(kind.tolerance, ELSEWHERE)):
        raise SystemExit(f"{kind.name}: found gradients that differ by {mine.difference:.1e}")
    memory = (mine.temporary_bytes or 1) / (theirs.temporary_bytes or 1)
    compile_time = (mine.compile_seconds or 1) / (theirs.compile_seconds or 1)
    ratios = Ratios(theirs.seconds / mine.seconds, memory, compile_time)
    best = min(one.seconds for one in (theirs, *others)) / mine.seconds
    told = [f"{one.seconds * 1e3:.1f} ms, {(one.temporary_bytes or 0) / 2**20:.2f} MiB" for one in (theirs, mine)]
    numbers = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return ratios, f"| {kind.name} | {told[0]} | {told[1]} | {numbers} | {best:.2f} | {ratios.missed()} |"


def _loss_and_gradient(made: Any) -> tuple[Any, ...]:
    (loss, _), gradient = made
    return loss, *jax.tree.leaves(gradient)


if __name__ == "__main__":
    main()
