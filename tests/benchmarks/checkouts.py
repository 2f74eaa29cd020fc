"""python -m tests.benchmarks.checkouts OTHER: this checkout's gradients beside those of another one, in turns.

    git worktree add ../before HEAD~1 && python -m tests.benchmarks.checkouts ../before

Each checkout runs in a process of its own, of which one computes at a time. Told are ratios, this one over the other:
time (medians of repeats in turns), temporary memory, and the time to trace and compile (medians, too).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# T, B, I, H, O; k1 and k2 of truncation.
SHAPES = [(512, 32, 64, 128, 64), (512, 32, 64, 256, 64), (1024, 1, 32, 128, 32), (1024, 1, 32, 512, 32)]
SHAPES += [(512, 128, 64, 64, 64), (256, 64, 128, 512, 128)]
TRUNCATIONS = [None, (32, 32), (8, 32)]
RESET = [(256, 16, 32, 64, 32)]
QUICK = [(12, 2, 3, 4, 2)]
CELLS = ("elman", "gru", "lstm")


def main(argv: Sequence[str] | None = None) -> None:
    """Run both and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.checkouts", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of another commit")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed (default 9)")
    parser.add_argument("--compilations", type=int, default=3, help="how often each is compiled (default 3)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, help="which cells; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args(argv)
    if not (options.other / "jax_bptt").is_dir():
        parser.error(f"other: found no package jax_bptt in {options.other}, expected a checkout")
    here = Path(__file__).parents[2]
    workers = [_start(checkout) for checkout in (here, options.other.resolve())]
    print(f"{'':44}{'time':>8}{'memory':>8}{'compile':>8}   ms, MiB, s of the other")
    for task in _tasks(options):
        print(_row(task, workers, options), flush=True)
    for worker in workers:
        worker.stdin.close()
        worker.wait()


def _tasks(options: argparse.Namespace) -> list[dict[str, Any]]:
    shapes, resets = (QUICK, QUICK) if options.quick else (SHAPES, RESET)
    truncations = [None, (2, 4)] if options.quick else TRUNCATIONS
    tasks = [
        {"cell": cell, "shape": shape, "k": k, "reset": False}
        for k in truncations
        for cell in options.cells
        for shape in (shapes if k is None else shapes[::2])
    ]
    return tasks + [{"cell": "lstm", "shape": shape, "k": None, "reset": reset} for shape in resets for reset in (0, 1)]


def _row(task: dict[str, Any], workers: list[Any], options: argparse.Namespace) -> str:
    orders, compiled, seconds = random.Random(0), ([], []), ([], [])
    for _ in range(options.compilations):
        for i in orders.sample(range(2), 2):
            compiled[i].append(_ask(workers[i], task))
    for _ in range(options.repeats):
        for i in orders.sample(range(2), 2):
            seconds[i].append(_ask(workers[i], None))
    time_of = [statistics.median(times) for times in seconds]
    bytes_of = [of[0][0] for of in compiled]
    compile_of = [statistics.median(seconds for _, seconds in of) for of in compiled]
    name = f"{task['cell']} {task['shape']} {task['k'] or ''}{' reset' if task['reset'] else ''}"
    ratios = [ours / other for ours, other in (time_of, bytes_of, compile_of)]
    figures = f"{time_of[1] * 1e3:.1f}, {bytes_of[1] / 2**20:.2f}, {compile_of[1]:.2f}"
    return f"{name:44}" + "".join(f"{ratio:8.3f}" for ratio in ratios) + f"   {figures}"


def _start(checkout: Path) -> Any:
    """A process that computes with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__, "--serve"], env=environment, cwd=checkout, **pipes)


def _ask(worker: Any, question: Any) -> Any:
    worker.stdin.write(json.dumps(question) + "\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit("a checkout's process ended")
    return json.loads(answer)


def _serve() -> None:
    """Compile what is asked for, and answer bytes and seconds; run it where nothing is, and answer seconds."""
    run: Callable[[], Any] | None = None
    for line in sys.stdin:
        task = json.loads(line)
        if task is not None:
            run, answer = _compile(task)
            run()  # once without a clock
        else:
            assert run is not None
            start = time.perf_counter()
            run()
            answer = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


def _compile(task: dict[str, Any]) -> tuple[Callable[[], Any], tuple[int, float]]:
    import jax
    import jax.numpy as jnp

    import jax_bptt as jb

    if Path(jb.__file__).parents[1] != Path.cwd():
        raise SystemExit(f"found jax_bptt in {Path(jb.__file__).parents[1]}, expected that of {Path.cwd()}")
    T, B, I, H, O = task["shape"]
    cell = getattr(jb.cells, task["cell"])(I, H, O)
    keys = jax.random.split(jax.random.key(0), 3)
    params, state = cell.init(keys[0]), cell.initial_state(B)
    args = params, state, jax.random.normal(keys[1], (T, B, I)), jax.random.normal(keys[2], (T, B, O))
    call = {"reset": jnp.arange(T)[:, None] % 7 == jnp.arange(B) % 7, "reset_state": state} if task["reset"] else {}
    loss = jb.losses.squared_error
    gradient = jb.truncated_bptt(cell, loss, *task["k"]) if task["k"] else jb.bptt(cell, loss)
    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(gradient).lower(*args, **call).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(compiled(*args, **call)), (
        compiled.memory_analysis().temp_size_in_bytes,
        seconds,
    )


if __name__ == "__main__":
    _serve() if sys.argv[1:] == ["--serve"] else main()
