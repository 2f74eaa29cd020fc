"""python -m tests.processes: one gradient of two processes, beside that of one.

Starts itself twice on this machine, as `jax.distributed` has it: on CPU, with Gloo between them, each with one device
and half of the batch. What the two compute together is compared with the gradient of the whole batch in one process.
"""

import argparse
import socket
import subprocess
import sys
from collections.abc import Sequence

import jax
import numpy as np

import jax_bptt as jb

PROCESSES = 2
STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS = 12, 4, 3, 5, 2
CLOSE = 1e-5
"""How much of a leaf's largest entry it may differ, in single precision."""


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes, or be one of them; 1 where they do not compute what one does."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes", description=__doc__.split("\n\n")[0])
    parser.add_argument("--coordinator", help="HOST:PORT of the first process, in one of them")
    parser.add_argument("--process", type=int, default=0, help="which of them it is")
    options = parser.parse_args(argv)
    if options.coordinator is None:
        return start()
    return one_of_them(options.coordinator, options.process)


def start() -> int:
    """Both processes, on a port of this machine that is free."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.processes", "--coordinator", address, "--process"]
    running = [subprocess.Popen([*command, str(i)]) for i in range(PROCESSES)]
    return max(abs(process.wait(timeout=60)) for process in running)


def one_of_them(coordinator: str, process: int) -> int:
    """Its part of the gradient, and how far the sum is from the whole."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, PROCESSES, process)
    cell, random = jb.cells.gru(INPUTS, HIDDEN, OUTPUTS), np.random.default_rng(0)
    xs = random.normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
    targets = random.normal(size=(STEPS, BATCH, OUTPUTS)).astype(np.float32)
    mask = (random.uniform(size=(STEPS, BATCH)) < 0.7).astype(np.float32)
    params, state = cell.init(jax.random.key(0)), np.zeros((BATCH, HIDDEN), np.float32)
    gradient = jb.bptt(cell, jb.losses.squared_error, reduction="mean")

    mesh = jax.make_mesh((PROCESSES,), ("batch",), (jax.sharding.AxisType.Auto,))
    mine = slice(process * BATCH // PROCESSES, (process + 1) * BATCH // PROCESSES)

    def of_all(part: np.ndarray, *axes: str | None) -> jax.Array:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.make_array_from_process_local_data(sharding, part)

    timed = (of_all(a[:, mine], None, "batch") for a in (xs, targets, mask))
    params_of_all = jax.tree.map(lambda p: of_all(np.asarray(p)), params)
    together = jax.jit(jb.data_parallel(gradient, mesh))(params_of_all, of_all(state[mine], "batch"), *timed)
    (loss, _), grads = jax.tree.map(lambda a: np.asarray(a.addressable_data(0)), together)
    (alone_loss, _), alone = jax.jit(gradient)(params, state, xs, targets, mask)
    pairs = zip(jax.tree.leaves((loss, grads)), map(np.asarray, jax.tree.leaves((alone_loss, alone))), strict=True)
    worst = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
    print(f"process {process} of {jax.process_count()}: loss {loss:.6f}, farthest from that of one process {worst:.1e}")
    jax.distributed.shutdown()
    return int(not worst <= CLOSE)


if __name__ == "__main__":
    sys.exit(main())
