"""Gradients of cells of Flax, Equinox and Haiku through ours equal those through each library's own unrolling."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problems import difference

import jax_bptt as jb
from interop import recipes

T, B, I, H = 7, 2, 3, 4
LOSS = jb.losses.squared_error


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


XS, TARGETS = normal(1, T, B, I), normal(2, T, B, H)


def nnx_case(lstm):
    """Step, params, state, and outputs by the library's own unrolling, as a function of params, state and xs."""
    make = nnx.OptimizedLSTMCell if lstm else nnx.GRUCell
    cell = make(I, H, rngs=nnx.Rngs(0))
    step, params = recipes.flax_nnx(cell)

    def unrolled(params, state, xs):
        rnn = nnx.RNN(nnx.merge(nnx.graphdef(cell), params), time_major=True, rngs=False)
        return rnn(xs, initial_carry=state)

    return step, params, unrolled


def linen_case(lstm):
    cell = (nn.OptimizedLSTMCell if lstm else nn.GRUCell)(H)
    rnn = nn.RNN(cell, time_major=True)
    carry = (jnp.zeros(H), jnp.zeros(H)) if lstm else jnp.zeros(H)
    params = cell.init(jax.random.key(0), carry, jnp.zeros(I))

    def unrolled(params, state, xs):
        return rnn.apply({"params": {"cell": params["params"]}}, xs, initial_carry=state)

    return cell.apply, params, unrolled


def equinox_case(lstm):
    cell = (eqx.nn.LSTMCell if lstm else eqx.nn.GRUCell)(I, H, key=jax.random.key(0))
    step, params = recipes.equinox(cell)
    static = eqx.partition(cell, eqx.is_array)[1]

    def unrolled(params, state, xs):  # as Equinox's examples do: a scan over the cell, vmapped over sequences
        def one(state, xs):
            def body(state, x):
                state = eqx.combine(params, static)(x, state)
                return state, state[0] if lstm else state

            return jax.lax.scan(body, state, xs)[1]

        return jax.vmap(one, in_axes=(0, 1), out_axes=1)(state, xs)

    return step, params, unrolled


def haiku_case(lstm):
    make = (lambda: hk.LSTM(H)) if lstm else (lambda: hk.GRU(H))
    step, init = recipes.haiku(make)
    state = hk.LSTMState(jnp.zeros(H), jnp.zeros(H)) if lstm else jnp.zeros(H)
    params = init(jax.random.key(0), jnp.zeros(I), state)
    network = hk.without_apply_rng(hk.transform(lambda xs, state: hk.dynamic_unroll(make(), xs, state)[0]))
    return step, params, lambda params, state, xs: network.apply(params, xs, state)


CASES = {"nnx": nnx_case, "linen": linen_case, "equinox": equinox_case, "haiku": haiku_case}


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("library", CASES)
def test_gradients_are_those_of_the_library(library, lstm):
    step, params, unrolled = CASES[library](lstm)
    params = jax.tree.map(lambda p: p + 0.1 * normal(p.size, *p.shape), params)
    state = (normal(3, B, H), normal(4, B, H)) if lstm else normal(3, B, H)
    if lstm and library == "haiku":
        state = hk.LSTMState(*state)

    def objective(params, state, xs):
        return jax.vmap(jax.vmap(LOSS))(unrolled(params, state, xs), TARGETS).sum()

    value, want = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2)))(params, state, XS)
    (loss, _), got = jax.jit(jb.bptt(step, LOSS, argnums=(0, 1, 2)))(params, state, XS, TARGETS)
    assert difference((loss, got), (value, want)) <= 1e-12

    def by_unroll(params, state, xs):
        return jax.vmap(jax.vmap(LOSS))(jb.unroll(step, params, state, xs)[1], TARGETS).sum()

    assert difference(jax.jit(jax.grad(by_unroll, argnums=(0, 1, 2)))(params, state, XS), want) <= 1e-12

    def in_windows(params):  # chunks of three steps, the state between them detached
        total, before = 0.0, state
        for k in range(0, T, 3):
            detached = jax.lax.stop_gradient(before)
            outputs = unrolled(params, detached, XS[k : k + 3])
            total += jax.vmap(jax.vmap(LOSS))(outputs, TARGETS[k : k + 3]).sum()
            before = jb.unroll(step, params, detached, XS[k : k + 3])[0]
        return total

    (_, _), truncated = jax.jit(jb.truncated_bptt(step, LOSS, 3, 3))(params, state, XS, TARGETS)
    assert difference(truncated, jax.jit(jax.grad(in_windows))(params)) <= 1e-12
