"""python -m tests.accelerators: compile, count, print and check; exits with 1 where a promise is broken.

Of the optimised program is counted what the device is made to do: kernels in a time step, forwards and backwards, and
in all, which is what a recurrent network costs where its products are small; on GPU, what the host has to launch, where
what XLA makes a CUDA graph of is one launch; temporary memory; and, on TPU, the cycles that its compiler expects (a
kernel that is no product has a floor of about 1800 in it, so compare like with like).

What the library promises on every platform is checked: that loops have trip counts known to the compiler, that nothing
is gathered, scattered or decided at run time, that no step of a loop over time writes an array of all steps, that of a
batch divided among four devices only gradients are summed up, once; and that by default the exact gradient stays within
its floors (`promises.FLOORS`) of the better of two scans written by hand. Of steps whose Jacobian is elementwise, that
the kernels of a GPU do not grow with time (`promises.AT_ONCE`).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jax_bptt as jb

from .compilers import compiled, devices
from .contenders import CELLS, ELEMENTWISE, ELEMENTWISE_SHAPES, OURS, SCANS, SHAPES, arguments, contenders, elementwise
from .program import launches, loop, read
from .promises import Figures, above_at_once, above_floors, broken, moved


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, count, print and check."""
    parser = argparse.ArgumentParser(prog="python -m tests.accelerators", description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", nargs="+", choices=("tpu", "gpu"), default=["tpu", "gpu"])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--only", nargs="+", help="names of gradient functions, or 'at once'; all by default")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes (default all)")
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    failures, compiled_any = [], False
    for target in options.target:
        try:
            found = devices(target)
        except Exception as error:  # the plugin is not there, or is of another version
            print(f"{target}: not compiled, for there is no compiler: {str(error).splitlines()[0]}")
            continue
        compiled_any = True
        print(f"\n{found[0].device_kind}; kernels in a time step are forwards, backwards")
        last = "cycles, M" if target == "tpu" else "launches"
        print(f"| cell | T, B, I, H, O | gradient | compile | temporary | in a step | kernels | of scan's | {last} |")
        print("|---|---|---|---|---|---|---|---|---|")
        for shape in SHAPES[: options.shapes]:
            for cell in options.cells:
                failures += one_shape(target, found, cell, shape, options.only)
        for cell in options.cells:
            failures += four_devices(target, found, cell, options.only)
        if target == "gpu" and (not options.only or "at once" in options.only):
            for name in ELEMENTWISE:
                failures += at_once(found, name)
    for failure in failures:
        print("FAILED", failure)
    print(f"{len(failures)} promises broken" if compiled_any else "nothing compiled")
    return 1 if failures else 0


def one_shape(target: str, found: list[Any], cell: str, shape: Sequence[int], only: Any) -> list[str]:
    """Rows of the table, of one cell and shape on one device; returns what is broken."""
    failures, figures = [], {}
    alone = SingleDeviceSharding(found[0])
    here = f"{target}, {cell}, {shape}"
    for name, function in contenders(cell, shape).items():
        if only and name not in (*only, *SCANS):
            continue
        start = time.perf_counter()
        try:
            lowered = jax.jit(function).lower(*arguments(cell, shape, alone, alone, alone))
            made, mark, sequence = compiled(target, lowered)
        except jax.errors.JaxRuntimeError as error:
            print(f"| {cell} | {', '.join(map(str, shape))} | {name} | {str(error).splitlines()[0][:150]} | | | | | |")
            failures += [f"{here}, {name}: not compiled"] if name in OURS else []
            continue
        seconds = time.perf_counter() - start
        program = read(made.as_text(), target)
        whole = loop(program, program.entry)
        memory = made.memory_analysis().temp_size_in_bytes / 2**20
        costs = {"cycles": whole.cycles() / 1e6} if target == "tpu" else {"launches": launches(sequence, whole)}
        figures[name] = Figures(whole.total(), memory, **costs)
        (last,) = costs.values()
        often = [f"{len(steps.kernels)}" for n, steps in whole.steps() if 2 * n >= shape[0] // 8 or n >= 32]
        print(
            f"| {cell} | {', '.join(map(str, shape))} | {name}{mark} | {seconds:.1f} s | {memory:.1f} MiB | "
            f"{', '.join(often)} | {whole.total()} | {whole.total() / figures[SCANS[0]].kernels:.2f} | {last:.6g} |",
            flush=True,
        )
        if name in OURS:
            failures += [f"{here}, {name}: {what}" for what in broken(program, whole, *shape[:2])]
    if "exact" in figures:
        scans = [figures[name] for name in SCANS]
        failures += [f"{here}, exact: {what}" for what in above_floors(target, figures["exact"], scans)]
    return failures


def at_once(found: list[Any], name: str) -> list[str]:
    """Rows of the table, of a step whose states and δ are solved at once; returns what is broken."""
    kernels = []
    for shape in ELEMENTWISE_SHAPES:
        ways, arguments_of = elementwise(name, shape, SingleDeviceSharding(found[0]))
        scan = 0
        for way, function in ways.items():
            start = time.perf_counter()
            made, mark, sequence = compiled("gpu", jax.jit(function).lower(*arguments_of))
            seconds = time.perf_counter() - start
            program = read(made.as_text(), "gpu")
            whole = loop(program, program.entry)
            scan = scan or whole.total()
            memory = made.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"| {name} | {', '.join(map(str, shape))} | {way}{mark} | {seconds:.1f} s | {memory:.1f} MiB | | "
                f"{whole.total()} | {whole.total() / scan:.4f} | {launches(sequence, whole)} |",
                flush=True,
            )
            kernels += [whole.total()] if way == "exact" else []
    return [f"gpu, {name}, at once: {what}" for what in above_at_once(kernels)]


def four_devices(target: str, found: list[Any], cell: str, only: Any) -> list[str]:
    """What is broken where the batch is divided among four devices."""
    shape, failures = SHAPES[0], []
    mesh = Mesh(np.array(found[:4]), ("batch",))
    shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",), (None, "batch"))]
    functions = {name: function for name, function in contenders(cell, shape).items() if name in OURS}
    functions["data_parallel"] = jb.data_parallel(functions["exact"], mesh)
    for name, function in functions.items():
        if only and name not in only:
            continue
        try:
            made, *_ = compiled(target, jax.jit(function).lower(*arguments(cell, shape, *shardings)))
        except jax.errors.JaxRuntimeError as error:
            failures.append(f"{target}, {cell}, {name}, 4 devices: not compiled: {str(error).splitlines()[0][:150]}")
            continue
        failures += [f"{target}, {cell}, {name}, 4 devices: {what}" for what in moved(read(made.as_text(), target))]
    return failures


if __name__ == "__main__":
    sys.exit(main())
