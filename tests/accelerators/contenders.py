"""What is compiled: gradient functions of three cells and of two elementwise steps, and what they are compared with."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jax_bptt as jb
from tests.benchmarks import peers
from tests.benchmarks.kinds import kinds

SHAPES = [(512, 32, 64, 256, 64), (1024, 1, 32, 512, 32), (512, 128, 64, 64, 64)]  # T, B, I, H, O
CELLS = ("elman", "gru", "lstm")


SCANS = ("scan", "scan, unroll=8")
"""What a user would write by hand, the second of them with one word more."""

OURS = ("exact", "states", "boundaries", "unroll", "k1=k2=32", "k1=8, k2=32")


def contenders(cell: str, shape: Sequence[int]) -> dict[str, Callable]:
    """Gradient functions by name; `scan` is what the others are compared with."""
    _, _, inputs, hidden, outputs = shape
    model, loss = getattr(jb.cells, cell)(inputs, hidden, outputs), jb.losses.squared_error
    return {
        "scan": peers.jax_grad(peers.rows(cell)),
        "scan, unroll=8": peers.jax_grad(peers.rows(cell), unroll=8),
        "reference": jb.reference.bptt(model, loss),
        "exact": jb.bptt(model, loss),
        "states": jb.bptt(model, loss, save="states"),
        "boundaries": jb.bptt(model, loss, save="boundaries"),
        "unroll": unrolled(model),
        "k1=k2=32": jb.truncated_bptt(model, loss, 32, 32),
        "k1=8, k2=32": jb.truncated_bptt(model, loss, 8, 32),
    }


ELEMENTWISE = ("minGRU", "LRU")
"""Steps whose states and δ are solved for all steps at once on a GPU."""

ELEMENTWISE_SHAPES = [(steps, 4, 64, 256, 32) for steps in (512, 2048, 4096)]


def elementwise(name: str, shape: Sequence[int], sharding: Any) -> tuple[dict[str, Callable], tuple]:
    """The exact gradient and `jax.grad` of a scan, of a step of `benchmarks.kinds`, and their arguments."""
    step = next(kind.step for kind in kinds() if kind.name == name)
    steps, batch, inputs, hidden, outputs = shape

    def like(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)

    if name == "minGRU":
        params, state = {key: like(hidden, inputs) for key in "zh"} | {"C": like(outputs, hidden)}, like(batch, hidden)
    else:
        params = {key: like(hidden, inputs) for key in "BD"} | {key: like(outputs, hidden) for key in "CE"}
        params |= {key: like(hidden) for key in ("decay", "turn")}
        state = like(batch, 2, hidden)

    def by_scan(params, state, xs, targets):
        def body(state, of_step):
            state, output = jax.vmap(step, (None, 0, 0))(params, state, of_step[0])
            return state, jb.losses.squared_error(output, of_step[1])

        state, losses = jax.lax.scan(body, state, (xs, targets))
        return losses.sum(), state

    ways = {"scan": jax.value_and_grad(by_scan, has_aux=True), "exact": jb.bptt(step, jb.losses.squared_error)}
    return ways, (params, state, like(steps, batch, inputs), like(steps, batch, outputs))


def unrolled(model: Any) -> Callable:
    """`jax.grad` through `jb.unroll`."""

    def objective(params, state, xs, targets):
        state, outputs = jb.unroll(model, params, state, xs)
        return 0.5 * ((outputs - targets) ** 2).sum(), state

    return jax.value_and_grad(objective, has_aux=True)


def arguments(cell: str, shape: Sequence[int], of_params: Any, of_state: Any, of_steps: Any) -> tuple:
    """Shapes and shardings of a gradient function's arguments."""
    steps, batch, inputs, hidden, outputs = shape
    model = getattr(jb.cells, cell)(inputs, hidden, outputs)
    trees = (
        jax.eval_shape(model.init, jax.random.key(0)),
        jax.eval_shape(lambda: model.initial_state(batch)),
        jax.ShapeDtypeStruct((steps, batch, inputs), jnp.float32),
        jax.ShapeDtypeStruct((steps, batch, outputs), jnp.float32),
    )
    shardings = of_params, of_state, of_steps, of_steps
    return tuple(
        jax.tree.map(lambda a, s=sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree)
        for tree, sharding in zip(trees, shardings, strict=True)
    )
