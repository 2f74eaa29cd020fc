"""Steps of one example that the tests share, each with params, state and x to call it with."""

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from interop import recipes

import jax_bptt as jb

I, H, O = 3, 4, 2


class Example(NamedTuple):
    step: Any
    params: Any
    state: Any
    x: Any


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def plain(leaf: Any):
    """What can be compared with numbers: of PRNG keys, their data."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def of_cell(cell: jb.Cell) -> Example:
    params = jax.tree.map(lambda p: p + 0.1 * normal(1, *p.shape), cell.init(jax.random.key(0)))
    state = jax.tree.map(lambda s: normal(2, *s.shape[1:]), cell.initial_state(1))
    return Example(cell.step, params, state, normal(3, I))


def of_flax_linen(cell: nn.RNNCellBase) -> Example:
    carry = jax.tree.map(lambda s: normal(2, *s.shape), cell.initialize_carry(jax.random.key(0), (I,)))
    params = cell.init(jax.random.key(0), carry, normal(3, I))
    return Example(cell.apply, params, carry, normal(3, I))


def of_flax_nnx(cell: Any) -> Example:
    carry = jax.tree.map(lambda s: normal(2, *s.shape), cell.initialize_carry((I,), nnx.Rngs(0)))
    return Example(*recipes.flax_nnx(cell), carry, normal(3, I))


def of_equinox(cell: Any) -> Example:
    lstm = isinstance(cell, eqx.nn.LSTMCell)
    return Example(*recipes.equinox(cell), (normal(2, H), normal(4, H)) if lstm else normal(2, H), normal(3, I))


def of_haiku(make: Any, state: Any) -> Example:
    step, init = recipes.haiku(make)
    return Example(step, init(jax.random.key(0), normal(3, I), state), state, normal(3, I))


BUILT_IN = {
    "elman": of_cell(jb.cells.elman(I, H, O)),
    "elman biased": of_cell(jb.cells.elman(I, H, O, f=jax.nn.relu, g=jnp.tanh, bias=True, output_bias=True)),
    "gru": of_cell(jb.cells.gru(I, H, O)),
    "lstm": of_cell(jb.cells.lstm(I, H, O)),
    "lstm without readout": of_cell(jb.cells.lstm(I, H, None)),
    "stack": of_cell(jb.cells.stack([jb.cells.gru(I, H, None), jb.cells.lstm(H, H, O)])),
}

OTHERS = {
    "linen lstm": of_flax_linen(nn.OptimizedLSTMCell(H)),
    "linen gru": of_flax_linen(nn.GRUCell(H)),
    "nnx lstm": of_flax_nnx(nnx.LSTMCell(I, H, rngs=nnx.Rngs(0))),
    "nnx gru": of_flax_nnx(nnx.GRUCell(I, H, rngs=nnx.Rngs(0))),
    "equinox lstm": of_equinox(eqx.nn.LSTMCell(I, H, key=jax.random.key(0))),
    "equinox gru": of_equinox(eqx.nn.GRUCell(I, H, key=jax.random.key(0))),
    "haiku lstm": of_haiku(lambda: hk.LSTM(H), hk.LSTMState(normal(2, H), normal(4, H))),
    "haiku gru": of_haiku(lambda: hk.GRU(H), normal(2, H)),
}


PLAIN = {"A": normal(11, H, H), "B": normal(12, H, I), "C": normal(13, O, H)}


def plain_step(params, h, x):
    h = jnp.tanh(params["A"] @ h + params["B"] @ x)
    return h, params["C"] @ h


def with_key_and_count(params, state, x):
    """Dropout of the recurrent product, by a PRNG key that is part of the state, as is an integer."""
    key, draw = jax.random.split(state["key"])
    keep = jax.random.bernoulli(draw, 0.5, (H,))
    h = jnp.tanh(jnp.where(keep, params["A"] @ state["h"], 0) + params["B"] @ x)
    return {"h": h, "key": key, "t": state["t"] + 1}, params["C"] @ h / state["t"]


WITH_KEY_AND_COUNT = Example(
    with_key_and_count, PLAIN, {"h": normal(14, H), "key": jax.random.key(1), "t": jnp.asarray(3)}, normal(15, I)
)
