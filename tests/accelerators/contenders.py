"""What is compiled: gradient functions of three cells, and what they are compared with."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jax_bptt as jb

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
        "scan": scan(cell),
        "scan, unroll=8": scan(cell, unroll=8),
        "reference": jb.reference.bptt(model, loss),
        "exact": jb.bptt(model, loss),
        "states": jb.bptt(model, loss, save="states"),
        "boundaries": jb.bptt(model, loss, save="boundaries"),
        "unroll": unrolled(model),
        "k1=k2=32": jb.truncated_bptt(model, loss, 32, 32),
        "k1=8, k2=32": jb.truncated_bptt(model, loss, 8, 32),
    }


def scan(cell: str, unroll: int = 1) -> Callable:
    """`jax.grad` of a `lax.scan` over a batched step, as one writes it by hand."""

    def elman(params, h, x):
        return jnp.tanh(h @ params["A"].T + x @ params["B"].T)

    def gru(params, h, x):
        from_x, from_h = x @ params["W_ih"].T + params["b_ih"], h @ params["W_hh"].T + params["b_hh"]
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(from_x, 3, -1), jnp.split(from_h, 3, -1)
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        return (1 - z) * jnp.tanh(x_n + r * h_n) + z * h

    def lstm(params, state, x):
        gates = x @ params["W_ih"].T + state[0] @ params["W_hh"].T + (params["b_ih"] + params["b_hh"])
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    transition = {"elman": elman, "gru": gru, "lstm": lstm}[cell]

    def step(params, state, x):
        state = transition(params, state, x)
        return state, jax.tree.leaves(state)[0] @ params["C"].T

    def objective(params, state, xs, targets):
        state, outputs = jax.lax.scan(functools.partial(step, params), state, xs, unroll=unroll)
        return 0.5 * ((outputs - targets) ** 2).sum(), state

    return jax.value_and_grad(objective, has_aux=True)


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
