"""python -m tests.benchmarks: run the tables, print them, write them as JSON and as a picture.

With `--device` those for a GPU or TPU, on whatever JAX finds, and then the zoo.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from . import picture, shapes, tables, zoo
from .measure import Measured, measure, product_rate

TABLES = {
    "exact": (tables.exact, shapes.SHAPES),
    "boundaries": (tables.boundaries, shapes.SHAPES + shapes.LONG),
    "interop": (tables.interop, shapes.SHAPES),
    "chunked": (tables.chunked, shapes.TRUNCATED),
    "overlapping": (tables.overlapping, shapes.TRUNCATED),
    "training": (tables.training, shapes.STREAMS),
}
DEVICE_TABLES = {"device": (tables.on_a_device, shapes.ON_A_DEVICE), "chunked": (tables.chunked, shapes.ON_A_DEVICE)}
LARGEST_DIFFERENCE = {"cpu": 1e-5}
"""Of two gradients, by platform; elsewhere products are of lower precision by default."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Raises:
        SystemExit: if a result differs from ours by more than 1e-5, or an option is not known.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Time, temporary memory and compile time of our gradients beside those of jax.grad, Flax, Equinox "
        "and PyTorch (where installed), medians of repeats in turns, float32, compiled, on this machine.",
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, help="which tables; all by default")
    parser.add_argument("--device", action="store_true", help="those for a GPU or TPU, and the zoo, on what JAX finds")
    parser.add_argument(
        "--cells", nargs="+", choices=shapes.CELLS, default=list(shapes.CELLS), help="which cells; all by default"
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that everything runs and agrees")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is timed (default 7)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark"), help="folder of benchmark.json and benchmark.png"
    )
    options = parser.parse_args(argv)
    if options.only and options.device:
        parser.error("argument --only: found with --device, expected one or the other")
    if options.repeats < 1:
        parser.error(f"argument --repeats: found {options.repeats}, expected at least 1")
    repeats = 1 if options.quick else options.repeats
    options.out.mkdir(parents=True, exist_ok=True)

    chosen = DEVICE_TABLES if options.device else {name: TABLES[name] for name in options.only or TABLES}
    largest = LARGEST_DIFFERENCE.get(jax.default_backend(), zoo.ELSEWHERE)
    rate = product_rate(repeats)
    machine = _machine() | {"product_gflops": round(rate / 1e9, 1)}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    found = []
    for make, of in chosen.values():
        for row in make(shapes.QUICK if options.quick else of, options.cells):
            measured = measure(row.contenders, repeats)
            record = _record(row, measured, rate)
            if not found or record["table"] != found[-1]["table"]:
                print(_heading(record), flush=True)
            print(_line(record), flush=True)
            found.append(record)
            wrong = {m.name: m.difference for m in measured if not m.difference <= largest}
            if wrong:
                raise SystemExit(
                    f"{row.table}, {row.cell}, {row.shape}: differ by more than {largest:g} from ours: {wrong}"
                )
            (options.out / "benchmark.json").write_text(
                json.dumps({"machine": machine, "rows": found}, indent=1) + "\n"
            )
    print(_summary(found))
    times = {
        f"{r['cell']}, B = {r['shape']['B']}, H = {r['shape']['H']}": {
            c["name"]: c["seconds"] / r["contenders"][0]["seconds"] for c in r["contenders"][1:]
        }
        for r in found
        if r["table"] in ("exact", "on a device")
    }
    written = [options.out / "benchmark.json"]
    if times:
        for name, drawn in (("benchmark.png", times), ("means.png", _means(times))):
            picture.bars(drawn).savefig(options.out / name, dpi=150)
            written.append(options.out / name)
    print(f"written: {', '.join(map(str, written))}")
    if options.device:
        print()
        zoo.main(["--quick", "--only", "spikes"] if options.quick else ["--repeats", str(repeats)])


def _machine() -> dict[str, Any]:
    def installed(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    versions = {name: installed(name) for name in ("jax", "flax", "equinox", "torch")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "precision of products": jax.config.jax_default_matmul_precision or "default",
        "python": platform.python_version(),
    } | versions


def _record(row: tables.Row, measured: list[Measured], rate: float) -> dict[str, Any]:
    ours, *others = measured
    return {
        "table": row.table,
        "cell": row.cell,
        "shape": row.shape._asdict(),
        "share_of_product_rate": row.flops / ours.seconds / rate,
        "contenders": [m._asdict() for m in (ours, *others)],
    }


def _heading(record: dict[str, Any]) -> str:
    names = [c["name"] for c in record["contenders"][1:]]
    first = ["cell", "T, B, I, H, O", "ours", "MiB", "compile", "share of peak"]
    columns = [*first, *(f"{name}: time, our share of memory" for name in names)]
    return f"\n**{record['table']}**\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _line(record: dict[str, Any]) -> str:
    ours, *others = record["contenders"]

    def beside(other):
        time = f"{other['seconds'] / ours['seconds']:.2f}×"
        if not other["temporary_bytes"]:
            return time
        return f"{time}, {ours['temporary_bytes'] / other['temporary_bytes']:.2f}"

    cells = [
        record["cell"],
        ", ".join(map(str, record["shape"].values())),
        f"{ours['seconds'] * 1e3:.1f} ms",
        f"{(ours['temporary_bytes'] or 0) / 2**20:.2f}",
        f"{ours['compile_seconds'] or 0:.1f} s",
        f"{record['share_of_product_rate']:.2f}",
        *map(beside, others),
    ]
    return f"| {' | '.join(cells)} |"


def _summary(found: list[dict[str, Any]]) -> str:
    """Geometric means of what others take over what ours takes, of each table and cell."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in found:
        groups.setdefault((record["table"], record["cell"]), []).append(record)
    lines = ["\nGeometric means over the shapes, time of others / time of ours (least); compile time, ours / theirs\n"]
    for (table, cell), records in groups.items():
        parts = []
        for i, other in enumerate(records[0]["contenders"][1:], start=1):
            ratios = [r["contenders"][i]["seconds"] / r["contenders"][0]["seconds"] for r in records]
            part = f"{other['name']} {_mean(ratios):.2f} ({min(ratios):.2f})"
            if other["compile_seconds"]:
                compiles = [
                    r["contenders"][0]["compile_seconds"] / r["contenders"][i]["compile_seconds"] for r in records
                ]
                part += f" compile {_mean(compiles):.2f}"
            parts.append(part)
        fastest = [min(c["seconds"] for c in r["contenders"][1:]) / r["contenders"][0]["seconds"] for r in records]
        lines.append(f"{table}, {cell}: " + "; ".join([*parts, f"fastest of each {_mean(fastest):.2f}"]))
    return "\n".join(lines)


def _means(times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Over the shapes of each cell."""
    found: dict[str, dict[str, list[float]]] = {}
    for task, others in times.items():
        for name, time_of_other in others.items():
            found.setdefault(task.split(",")[0], {}).setdefault(name, []).append(time_of_other)
    return {cell: {name: _mean(ratios) for name, ratios in others.items()} for cell, others in found.items()}


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


if __name__ == "__main__":
    main()
