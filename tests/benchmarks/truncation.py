"""Truncated BPTT beside the usual recipes: time and temporary memory, compiled, in one run.

    python tests/benchmarks/truncation.py

The recipes are what a good user writes with `jax.grad`. For windows that follow each other: one scan over windows, with
`stop_gradient` between them, around one over steps. For windows that overlap: the states by one scan, then every window
again from its constant start, side by side (`vmap`) or one after the other (`lax.map`). Their steps are batched, with
products of the form x @ Wᵀ.
"""

import platform
import time
from typing import Any

import jax
import jax.numpy as jnp

import jax_bptt as jb
from jax_bptt.compare import compare

T = 1024
SHAPES = [(1, 128), (1, 512), (32, 128), (32, 256)]  # B, H


def batched_step(params: Any, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = jnp.tanh(h @ params["A"].T + x @ params["B"].T)
    return h, h @ params["C"].T


def summed_loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((outputs - targets) ** 2)


def chunked(k: int) -> Any:
    """Windows that follow each other."""

    def objective(params, state, xs, targets):
        def window(state, steps):
            def step(h, x_and_target):
                h, output = batched_step(params, h, x_and_target[0])
                return h, summed_loss(output, x_and_target[1])

            return jax.lax.scan(step, jax.lax.stop_gradient(state), steps)

        cut = jax.tree.map(lambda a: a.reshape(-1, k, *a.shape[1:]), (xs, targets))
        state, losses = jax.lax.scan(window, state, cut)
        return losses.sum(), state

    return jax.value_and_grad(objective, has_aux=True)


def overlapping(k1: int, k2: int, run_all: Any) -> Any:
    """Windows that overlap, each run again; `run_all(f, ends)` is `vmap` or `lax.map`."""

    def objective(params, state, xs, targets):
        end, before = jax.lax.scan(lambda h, x: (batched_step(params, h, x)[0], h), state, xs)
        before = jax.lax.stop_gradient(before)

        def window(end):
            def step(h, t):
                new, output = batched_step(params, h, xs[t])
                loss = jnp.where(t >= end - k1, summed_loss(output, targets[t]), 0.0)
                return jnp.where(t >= 0, new, h), loss

            start = before[jnp.maximum(end - k2, 0)]
            return jax.lax.scan(step, start, end - k2 + jnp.arange(k2))[1].sum()

        return run_all(window, jnp.arange(k1, len(xs) + 1, k1)).sum(), end

    return jax.value_and_grad(objective, has_aux=True)


def main() -> None:
    print(f"jax {jax.__version__}, {platform.machine()}, {jax.devices()[0].device_kind}, {time.strftime('%Y-%m-%d')}")
    print("| B | H | k1 | k2 | beside | time | | temporary memory | | largest difference |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for B, H in SHAPES:
        cell = jb.cells.elman(64, H, 64)
        keys = jax.random.split(jax.random.key(0), 3)
        xs, targets = (jax.random.normal(key, (T, B, 64)) for key in keys[1:])
        args = cell.init(keys[0]), cell.initial_state(B), xs, targets
        for k1, k2, name, recipe in [
            (32, 32, "scan over windows", chunked(32)),
            (8, 32, "vmap over windows", overlapping(8, 32, lambda f, ends: jax.vmap(f)(ends))),
            (8, 32, "map over windows", overlapping(8, 32, jax.lax.map)),
        ]:
            ours = jb.truncated_bptt(cell, jb.losses.squared_error, k1, k2)
            result = compare(ours, recipe, *args, repeats=9)
            (a, b), worst = (result.cost, result.other), max(result.differences.values())
            assert worst < 1e-4, result.differences
            times = f"{a.seconds * 1e3:.1f} / {b.seconds * 1e3:.1f} ms | {b.seconds / a.seconds:.2f}×"
            ours_mib, recipe_mib = (cost.temporary_bytes / 2**20 for cost in (a, b))
            memory = f"{ours_mib:.2f} / {recipe_mib:.2f} MiB | {ours_mib / recipe_mib:.2f}"
            print(f"| {B} | {H} | {k1} | {k2} | {name} | {times} | {memory} | {worst:.0e} |", flush=True)


if __name__ == "__main__":
    main()
