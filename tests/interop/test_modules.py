"""The other way: `jb.unroll` inside a Flax module and inside an Equinox module, trained under plain `jax.grad`."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from problems import difference

import jax_bptt as jb

T, B, I, H = 6, 2, 3, 4
CELL = jb.cells.gru(I, H, None)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, I)))


def by_scan(params, xs):
    """All states, by `lax.scan` over the batched step."""

    def body(h, x):
        return jax.vmap(CELL.step, in_axes=(None, 0, 0))(params, h, x)

    return jax.lax.scan(body, CELL.initial_state(B), xs)[1]


class Encoder(nn.Module):
    """A dense layer over the states of a GRU."""

    @nn.compact
    def __call__(self, xs):
        params = self.param("gru", CELL.init)
        _, hs = jb.unroll(CELL, params, CELL.initial_state(xs.shape[1]), xs)
        return nn.Dense(2)(hs)


def test_inside_a_flax_module():
    encoder = Encoder()
    variables = encoder.init(jax.random.key(0), XS)

    def by_hand(variables):
        dense = variables["params"]["Dense_0"]
        return ((by_scan(variables["params"]["gru"], XS) @ dense["kernel"] + dense["bias"][None, None]) ** 2).sum()

    got = jax.jit(jax.grad(lambda variables: (encoder.apply(variables, XS) ** 2).sum()))(variables)
    assert difference(got, jax.grad(by_hand)(variables)) <= 1e-6  # the params are in single precision


class Classifier(eqx.Module):
    """A linear layer over the last state of a GRU."""

    gru: dict
    head: eqx.nn.Linear

    def __call__(self, xs):
        _, hs = jb.unroll(CELL, self.gru, CELL.initial_state(xs.shape[1]), xs)
        return jax.vmap(self.head)(hs[-1])


def test_inside_an_equinox_module():
    keys = jax.random.split(jax.random.key(0))
    model = Classifier(CELL.init(keys[0]), eqx.nn.Linear(H, 2, key=keys[1]))

    def by_hand(model):
        return (jax.vmap(model.head)(by_scan(model.gru, XS)[-1]) ** 2).sum()

    got = eqx.filter_jit(eqx.filter_grad(lambda model: (model(XS) ** 2).sum()))(model)
    assert difference(got, eqx.filter_grad(by_hand)(model)) <= 1e-6
