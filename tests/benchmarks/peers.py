"""What ours is compared with: the gradient of a recurrent model's squared loss, as good users of each library write it.

Steps of JAX are batched, in two orientations of their products: rows, with states of `[B, H]` and products x @ Wᵀ, and
columns, with states of `[H, B]` and products W @ x. Each gradient function is `(params, state, xs, targets) ->
((loss, state), grads)`, with params as our cells have them, unless its docstring says otherwise.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from flax import nnx

Step = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]


def rows(cell: str) -> Step:
    """The batched step of a cell, with products x @ Wᵀ."""
    return functools.partial(_STEPS[cell], lambda W, x: x @ W.T, lambda b: b, -1)


def columns(cell: str) -> Step:
    """The same with products W @ x."""
    return functools.partial(_STEPS[cell], lambda W, x: W @ x, lambda b: b[:, None], 0)


def _elman(product, bias, axis, params, h, x):
    h = jnp.tanh(product(params["A"], h) + product(params["B"], x))
    return h, product(params["C"], h)


def _gru(product, bias, axis, params, h, x):
    from_x = product(params["W_ih"], x) + bias(params["b_ih"])
    from_h = product(params["W_hh"], h) + bias(params["b_hh"])
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(from_x, 3, axis), jnp.split(from_h, 3, axis)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    h = (1 - z) * n + z * h
    return h, product(params["C"], h)


def _lstm(product, bias, axis, params, state, x):
    h, c = state
    gates = product(params["W_ih"], x) + product(params["W_hh"], h) + bias(params["b_ih"] + params["b_hh"])
    i, f, g, o = jnp.split(gates, 4, axis)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), product(params["C"], h)


_STEPS = {"elman": _elman, "gru": _gru, "lstm": _lstm}


def summed_loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((outputs - targets) ** 2)


def jax_grad(step: Step, unroll: int = 1) -> Callable:
    """`jax.grad` of one `lax.scan`."""

    def objective(params, state, xs, targets):
        state, outputs = jax.lax.scan(functools.partial(step, params), state, xs, unroll=unroll)
        return summed_loss(outputs, targets), state

    return jax.value_and_grad(objective, has_aux=True)


def hoisted(cell: str, unroll: int) -> Callable:
    """`jax.grad` of one `lax.scan`, the products with x and with C taken out of it by hand."""
    step = functools.partial(_STEPS[cell], lambda W, x: x if W is None else x @ W.T, lambda b: b, -1)
    of_inputs = "B" if cell == "elman" else "W_ih"

    def objective(params, state, xs, targets):
        left = params | {of_inputs: None, "C": None}
        state, hs = jax.lax.scan(functools.partial(step, left), state, xs @ params[of_inputs].T, unroll=unroll)
        return summed_loss(hs @ params["C"].T, targets), state

    return jax.value_and_grad(objective, has_aux=True)


def jax_grad_columns(step: Step) -> Callable:
    """`jax.grad` of one `lax.scan` over steps in columns, which gets and returns arrays in rows."""

    def objective(params, state, xs, targets):
        state, xs, targets = jax.tree.map(lambda a: jnp.swapaxes(a, -1, -2), (state, xs, targets))
        state, outputs = jax.lax.scan(functools.partial(step, params), state, xs)
        return summed_loss(outputs, targets), jax.tree.map(jnp.transpose, state)

    return jax.value_and_grad(objective, has_aux=True)


def jax_checkpoint(step: Step) -> Callable:
    """`jax.grad` of a scan over about √T chunks, each under `jax.checkpoint`."""

    def objective(params, state, xs, targets):
        @jax.checkpoint
        def chunk(state, chunk):
            xs, targets = chunk
            state, outputs = jax.lax.scan(functools.partial(step, params), state, xs)
            return state, summed_loss(outputs, targets)

        size = next(size for size in range(math.isqrt(len(xs)), 0, -1) if len(xs) % size == 0)
        cut = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), (xs, targets))
        state, losses = jax.lax.scan(chunk, state, cut)
        return losses.sum(), state

    return jax.value_and_grad(objective, has_aux=True)


def equinox_checkpointed(step: Step) -> Callable:
    """`jax.grad` of Equinox's scan with about √T checkpoints."""

    def objective(params, state, xs, targets):
        def body(state, x_and_target):
            state, output = step(params, state, x_and_target[0])
            return state, summed_loss(output, x_and_target[1])

        state, losses = eqxi.scan(
            body, state, (xs, targets), kind="checkpointed", checkpoints=max(1, math.isqrt(len(xs)))
        )
        return losses.sum(), state

    return jax.value_and_grad(objective, has_aux=True)


def flax_rnn(cell: str, params: Any) -> tuple[Callable, Any, Callable[[Any], jax.Array]]:
    """Flax's `nnx.RNN`: a gradient function, its params, and what picks the gradient of the recurrent weights."""
    recurrent, from_inputs = params[RECURRENT[cell]], params[{"elman": "B"}.get(cell, "W_ih")]
    hidden, inputs = from_inputs.shape[0] // GATES[cell], from_inputs.shape[1]
    make = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[cell]
    module = make(inputs, hidden, rngs=nnx.Rngs(0))
    module.dense_i.kernel[...], module.dense_h.kernel[...] = from_inputs.T, recurrent.T
    if cell == "lstm":
        module.dense_h.bias[...] = params["b_ih"] + params["b_hh"]
    graph, weights, rest = nnx.split(nnx.RNN(module, time_major=True, return_carry=True, rngs=False), nnx.Param, ...)

    def objective(params, state, xs, targets):
        weights, C = params
        carry = state[::-1] if isinstance(state, tuple) else state  # Flax has (c, h)
        carry, hs = nnx.merge(graph, weights, rest)(xs, initial_carry=carry)
        return summed_loss(hs @ C.T, targets), carry

    return (
        jax.value_and_grad(objective, has_aux=True),
        (weights, params["C"]),
        lambda grads: jax.tree.leaves(grads[0]["cell"]["dense_h"]["kernel"])[0].T,
    )


def torch_rnn(cell: str, params: Any, xs: Any, targets: Any, threads: int) -> Callable[[], tuple[Any, Any]]:
    """PyTorch's `nn.RNN`, `nn.GRU` or `nn.LSTM` with a linear readout: loss and gradient of the recurrent weights.

    On a GPU, by cuDNN, where JAX runs on one and PyTorch finds it.
    """
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"

    def tensor(a):
        return torch.from_numpy(np.array(a)).to(device)

    inputs, hidden = xs.shape[-1], params["C"].shape[1]
    make = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    module = make(inputs, hidden, bias=cell != "elman").to(device)
    named = {"elman": {"A": "weight_hh_l0", "B": "weight_ih_l0"}}.get(
        cell, {name: f"{'weight' if name[0] == 'W' else 'bias'}_{name[2:]}_l0" for name in params if name != "C"}
    )
    with torch.no_grad():
        for ours, theirs in named.items():
            getattr(module, theirs).copy_(tensor(params[ours]))
    C = tensor(params["C"]).requires_grad_()
    xs, targets = tensor(xs), tensor(targets)

    def run():
        module.zero_grad(set_to_none=True)
        C.grad = None
        hs, _ = module(xs)
        loss = 0.5 * ((hs @ C.T - targets) ** 2).sum()
        loss.backward()
        return loss.item(), module.weight_hh_l0.grad.cpu().numpy()

    return run


RECURRENT = {"elman": "A", "gru": "W_hh", "lstm": "W_hh"}
GATES = {"elman": 1, "gru": 3, "lstm": 4}


# The usual recipes of truncation.


def chunked(step: Step, k: int) -> Callable:
    """Windows that follow each other: a scan over windows, `stop_gradient` between them, around one over steps."""

    def objective(params, state, xs, targets):
        def window(state, steps):
            def one(state, x_and_target):
                state, output = step(params, state, x_and_target[0])
                return state, summed_loss(output, x_and_target[1])

            return jax.lax.scan(one, jax.lax.stop_gradient(state), steps)

        cut = jax.tree.map(lambda a: a.reshape(-1, k, *a.shape[1:]), (xs, targets))
        state, losses = jax.lax.scan(window, state, cut)
        return losses.sum(), state

    return jax.value_and_grad(objective, has_aux=True)


def overlapping(step: Step, k1: int, k2: int, run_all: Callable) -> Callable:
    """Windows that overlap: the states by one scan, then every window again; `run_all(f, ends)` is vmap or lax.map."""

    def objective(params, state, xs, targets):
        end, before = jax.lax.scan(lambda state, x: (step(params, state, x)[0], state), state, xs)
        before = jax.lax.stop_gradient(before)

        def window(end):
            def one(state, t):
                new, output = step(params, state, xs[t])
                loss = jnp.where(t >= end - k1, summed_loss(output, targets[t]), 0.0)
                return jax.tree.map(lambda new, old: jnp.where(t >= 0, new, old), new, state), loss

            start = jax.tree.map(lambda b: b[jnp.maximum(end - k2, 0)], before)
            return jax.lax.scan(one, start, end - k2 + jnp.arange(k2))[1].sum()

        return run_all(window, jnp.arange(k1, len(xs) + 1, k1)).sum(), end

    return jax.value_and_grad(objective, has_aux=True)
