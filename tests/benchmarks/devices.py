"""python -m tests.benchmarks.devices: a batch divided among two CPU devices, in turns with one device.

`jb.data_parallel` beside `jax.grad` of a scan on one device, and in a `jax.shard_map` over the same two, where the
params vary, so that their gradients are summed up after the loop. Told are medians of time, and by how much the others
are slower.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jax_bptt as jb
from jax_bptt.engine.leaves import vary

from . import peers
from .measure import compiled, measure

LARGE = 480, 32, 48, 128, 64
CASES = [("elman", LARGE), ("gru", LARGE), ("lstm", LARGE), ("lstm", (300, 64, 64, 256, 64))]
QUICK = [("gru", (12, 4, 3, 5, 2))]
SPECS = PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch"), PartitionSpec(None, "batch")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; exits with what is wrong where gradients differ by more than 1e-5."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.devices", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed (default 9)")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to see that it runs")
    options = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = jax.make_mesh((2,), ("batch",), (AxisType.Auto,))
    print("| cell | T, B, I, H, O | ours | times as fast as jax.grad on one device | in shard_map on the same two |")
    print("|---|---|---|---|---|")
    ratios = [_row(mesh, *case, options.repeats) for case in (QUICK if options.quick else CASES)]
    means = (math.exp(statistics.mean(map(math.log, of))) for of in zip(*ratios, strict=True))
    print("geometric means: " + ", ".join(f"{mean:.2f}" for mean in means))


def _row(mesh: Mesh, cell: str, shape: tuple[int, ...], repeats: int) -> list[float]:
    T, B, I, H, O = shape
    model, keys = getattr(jb.cells, cell)(I, H, O), jax.random.split(jax.random.key(0), 3)
    xs, targets = jax.random.normal(keys[1], (T, B, I)), jax.random.normal(keys[2], (T, B, O))
    args = model.init(keys[0]), model.initial_state(B), xs, targets
    divided = tuple(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(args, SPECS, strict=True))
    by_grad = peers.jax_grad(peers.rows(cell))

    def pick(result: Any) -> tuple[Any, ...]:
        return result[0][0], *jax.tree.leaves(result[1])

    contenders = [
        compiled("ours", jb.data_parallel(jb.bptt(model, jb.losses.squared_error), mesh), divided, pick),
        compiled("one device", by_grad, args, pick),
        compiled("shard_map", _in_shard_map(by_grad, mesh), divided, pick),
    ]
    ours, *others = measure(contenders, repeats)
    if wrong := {m.name: m.difference for m in others if not m.difference <= 1e-5}:
        raise SystemExit(f"{cell}, {shape}: differ by more than 1e-5 from ours: {wrong}")
    ratios = [other.seconds / ours.seconds for other in others]
    told = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"| {cell} | {', '.join(map(str, shape))} | {ours.seconds * 1e3:.1f} ms | {told} |", flush=True)
    return ratios


def _in_shard_map(gradient: Callable, mesh: Mesh) -> Callable:
    """The gradient of each device's part, and then the sums: what a good user writes by hand."""

    def of_part(params: Any, *data: Any) -> Any:
        (loss, state), grads = gradient(jax.tree.map(lambda p: vary(p, frozenset({"batch"})), params), *data)
        return (jax.lax.psum(loss, "batch"), state), jax.lax.psum(grads, "batch")

    out = (PartitionSpec(), PartitionSpec("batch")), PartitionSpec()
    return jax.shard_map(of_part, mesh=mesh, in_specs=SPECS, out_specs=out)


if __name__ == "__main__":
    main()
