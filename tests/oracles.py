"""Backpropagation through time written from the formulas: slow, independent, NumPy in float64.

A model is a pair of functions of one time step of a batch:

    forward(params, state, x)                          -> state, output, cache
    backward(params, cache, d_output, d_state)         -> d_params, d_state before the step, d_x, delta

where `d_state` is the credit that comes from later steps, and `delta` that plus the output's: ∂L/∂h_t. `bptt` is the
loop over time around them. Nothing here imports JAX.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Model(NamedTuple):
    forward: Callable[..., Any]
    backward: Callable[..., Any]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


#: Activations with their derivatives.
ACTIVATIONS = {
    "identity": (lambda x: x, np.ones_like),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
}


def _readout(p, h, g="identity"):
    if "C" not in p:
        return h, None
    o = h @ p["C"].T + p.get("c", 0.0)
    return ACTIVATIONS[g][0](o), o


def _readout_backward(p, h, o, d_y, g="identity"):
    """Gradients of C and c, and the credit to h."""
    if "C" not in p:
        return {}, d_y
    d_o = d_y * ACTIVATIONS[g][1](o)
    d_p = {"C": d_o.T @ h}
    if "c" in p:
        d_p["c"] = d_o.sum(0)
    return d_p, d_o @ p["C"]


def elman(f: str = "tanh", g: str = "identity") -> Model:
    """h_t = f(A h_{t−1} + B x_t + b), ŷ_t = g(C h_t + c)."""

    def forward(p, h_tm1, x_t):
        a_t = h_tm1 @ p["A"].T + x_t @ p["B"].T + p.get("b", 0.0)
        h_t = ACTIVATIONS[f][0](a_t)
        y_t, o_t = _readout(p, h_t, g)
        return h_t, y_t, (h_tm1, x_t, a_t, h_t, o_t)

    def backward(p, cache, d_y, d_h):
        h_tm1, x_t, a_t, h_t, o_t = cache
        d_p, credit = _readout_backward(p, h_t, o_t, d_y, g)
        delta_t = d_h + credit
        d_a = delta_t * ACTIVATIONS[f][1](a_t)
        d_p |= {"A": d_a.T @ h_tm1, "B": d_a.T @ x_t}
        if "b" in p:
            d_p["b"] = d_a.sum(0)
        return d_p, d_a @ p["A"], d_a @ p["B"], delta_t

    return Model(forward, backward)


def gru() -> Model:
    """PyTorch's GRU, gates r, z, n."""

    def forward(p, h_tm1, x_t):
        i_r, i_z, i_n = np.split(x_t @ p["W_ih"].T + p["b_ih"], 3, axis=1)
        k_r, k_z, k_n = np.split(h_tm1 @ p["W_hh"].T + p["b_hh"], 3, axis=1)
        r, z = sigmoid(i_r + k_r), sigmoid(i_z + k_z)
        n = np.tanh(i_n + r * k_n)
        h_t = (1 - z) * n + z * h_tm1
        y_t, o_t = _readout(p, h_t)
        return h_t, y_t, (h_tm1, x_t, r, z, n, k_n, h_t, o_t)

    def backward(p, cache, d_y, d_h):
        h_tm1, x_t, r, z, n, k_n, h_t, o_t = cache
        d_p, credit = _readout_backward(p, h_t, o_t, d_y)
        delta_t = d_h + credit
        d_n = delta_t * (1 - z) * (1 - n**2)
        d_z = delta_t * (h_tm1 - n) * z * (1 - z)
        d_r = d_n * k_n * r * (1 - r)
        d_i = np.concatenate([d_r, d_z, d_n], axis=1)
        d_k = np.concatenate([d_r, d_z, d_n * r], axis=1)
        d_p |= {"W_ih": d_i.T @ x_t, "W_hh": d_k.T @ h_tm1, "b_ih": d_i.sum(0), "b_hh": d_k.sum(0)}
        return d_p, d_k @ p["W_hh"] + delta_t * z, d_i @ p["W_ih"], delta_t

    return Model(forward, backward)


def lstm() -> Model:
    """PyTorch's LSTM, gates i, f, g, o; the state is (h, c)."""

    def forward(p, state, x_t):
        h_tm1, c_tm1 = state
        a = x_t @ p["W_ih"].T + p["b_ih"] + h_tm1 @ p["W_hh"].T + p["b_hh"]
        i, f, g, o = np.split(a, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c_t = f * c_tm1 + i * g
        h_t = o * np.tanh(c_t)
        y_t, o_t = _readout(p, h_t)
        return (h_t, c_t), y_t, (h_tm1, c_tm1, x_t, i, f, g, o, c_t, h_t, o_t)

    def backward(p, cache, d_y, d_state):
        h_tm1, c_tm1, x_t, i, f, g, o, c_t, h_t, o_t = cache
        d_h, d_c = d_state
        d_p, credit = _readout_backward(p, h_t, o_t, d_y)
        delta_h, delta_c = d_h + credit, d_c
        d_ct = delta_c + delta_h * o * (1 - np.tanh(c_t) ** 2)
        d_a = np.concatenate(
            [
                d_ct * g * i * (1 - i),
                d_ct * c_tm1 * f * (1 - f),
                d_ct * i * (1 - g**2),
                delta_h * np.tanh(c_t) * o * (1 - o),
            ],
            axis=1,
        )
        d_p |= {"W_ih": d_a.T @ x_t, "W_hh": d_a.T @ h_tm1, "b_ih": d_a.sum(0), "b_hh": d_a.sum(0)}
        return d_p, (d_a @ p["W_hh"], d_ct * f), d_a @ p["W_ih"], (delta_h, delta_c)

    return Model(forward, backward)


def stack(layers: list[Model]) -> Model:
    """The output of a layer is the input of the next."""

    def forward(params, state, x_t):
        states, caches = [], []
        for layer, p, s in zip(layers, params, state, strict=True):
            s, x_t, cache = layer.forward(p, s, x_t)
            states.append(s)
            caches.append(cache)
        return tuple(states), x_t, caches

    def backward(params, caches, d_y, d_state):
        d_params, d_before = [], []
        for layer, p, cache, d_s in reversed(list(zip(layers, params, caches, d_state, strict=True))):
            d_p, d_s, d_y, _ = layer.backward(p, cache, d_y, d_s)
            d_params.append(d_p)
            d_before.append(d_s)
        return tuple(d_params[::-1]), tuple(d_before[::-1]), d_y, None

    return Model(forward, backward)


def nested() -> Model:
    """The step `nested_step` of test_bptt.py, over nested pytrees."""

    def forward(p, state, x_t):
        h_tm1, (s_tm1,) = state["h"], state["more"]
        u, v = x_t["u"], x_t["more"][0]
        a_t = h_tm1 @ p["in"]["A"] + u @ p["in"]["B"] + s_tm1
        h_t = np.sin(a_t)
        s_t = p["decay"] * s_tm1 + h_tm1 * v
        return {"h": h_t, "more": (s_t,)}, {"y": h_t + s_tm1, "z": [s_t * p["out"]]}, (h_tm1, s_tm1, u, v, a_t, s_t)

    def backward(p, cache, d_out, d_state):
        h_tm1, s_tm1, u, v, a_t, s_t = cache
        d_y, d_z = d_out["y"], d_out["z"][0]
        delta_h, delta_s = d_state["h"] + d_y, d_state["more"][0] + d_z * p["out"]
        d_a = delta_h * np.cos(a_t)
        d_p = {"in": {"A": h_tm1.T @ d_a, "B": u.T @ d_a}, "decay": (delta_s * s_tm1).sum(), "out": (d_z * s_t).sum(0)}
        d_before = {"h": d_a @ p["in"]["A"].T + delta_s * v, "more": (d_a + delta_s * p["decay"] + d_y,)}
        d_x = {"u": d_a @ p["in"]["B"].T, "more": [delta_s * h_tm1]}
        return d_p, d_before, d_x, {"h": delta_h, "more": (delta_s,)}

    return Model(forward, backward)


def squared_error(y, target):
    """Per example, ½‖ŷ − y‖² and its gradient; over any nesting of dicts, lists and tuples."""
    d = sub(y, target)
    return sum(0.5 * (leaf**2).sum(-1) for leaf in leaves(d)), d


def inner_product(y, target):
    """Per example, ⟨ŷ, y⟩ and its gradient: a loss under which cotangents are given."""
    return sum((a * b).sum(-1) for a, b in zip(leaves(y), leaves(target), strict=True)), target


def softmax_cross_entropy(logits, label):
    """Per example, −log softmax(ŷ)_label and its gradient."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = e / e.sum(-1, keepdims=True)
    one_hot = np.eye(logits.shape[-1])[label]
    return -np.log((probabilities * one_hot).sum(-1)), probabilities - one_hot


def bptt(model: Model, loss, params, state, xs, targets, weights, reduction):
    """Loss, last state, gradients of (params, state, xs), and deltas; `weights` is [T, B]."""
    scale = 1.0 if reduction == "sum" else 0.0 if weights.sum() == 0 else 1 / weights.sum()
    total, caches, d_outputs = 0.0, [], []
    for t in range(len(weights)):
        state, output, cache = model.forward(params, state, at(xs, t))
        losses, d_output = loss(output, at(targets, t))
        total += scale * np.where(weights[t] == 0, 0, losses * weights[t]).sum()
        w = scale * weights[t][:, None]
        d_outputs.append(mapped(lambda d, w=w: np.where(w == 0, 0, d * w), d_output))
        caches.append(cache)
    d_state, d_params, d_xs, deltas = mapped(np.zeros_like, state), None, [], []
    for cache, d_output in zip(caches[::-1], d_outputs[::-1], strict=True):
        d_p, d_state, d_x, delta = model.backward(params, cache, d_output, d_state)
        d_params = d_p if d_params is None else add(d_params, d_p)
        d_xs.append(d_x)
        deltas.append(delta)
    return (total, state), (d_params, d_state, stacked(d_xs[::-1])), deltas[::-1]


def truncated(
    model: Model,
    loss,
    params,
    state,
    xs,
    targets,
    weights,
    reduction,
    k1,
    k2,
    losses="newest",
    reset=None,
    reset_state=None,
    burn_in=0,
    d_end=None,
):
    """Truncated BPTT, one window after the other, each from a constant start.

    `reset` is [T, B]; `d_end` a cotangent of the last state. Returns loss and last state, gradients of (params, state,
    xs) and of the state to reset to, and how often the loss of each step counts.
    """
    T = len(weights)
    reset = np.zeros(weights.shape, bool) if reset is None else reset
    initial = mapped(np.zeros_like, state) if reset_state is None else reset_state

    def put_back(state, t):
        return mapped(lambda s, i: np.where(reset[t][:, None], i, s), state, initial)

    states, first_output = [state], None
    for t in range(T):
        following, output, _ = model.forward(params, put_back(states[t], t), at(xs, t))
        states.append(following)
        first_output = output if first_output is None else first_output
    total, weight, counts = 0.0, 0.0, np.zeros(T, int)
    nothing = mapped(np.zeros_like, loss(first_output, at(targets, 0))[1])
    d_params, d_xs = None, [mapped(np.zeros_like, at(xs, t)) for t in range(T)]
    d_start, d_initial = mapped(np.zeros_like, state), mapped(np.zeros_like, state)
    for end in range(burn_in + k1, T + k1, k1):
        start = max(burn_in, end - k2)
        first = {"newest": end - k1, "all": start, "last": end - 1}[losses]
        h, caches = states[min(start, T)], []
        for t in range(start, min(end, T)):
            h, output, cache = model.forward(params, put_back(h, t), at(xs, t))
            d_output = nothing
            if t >= first:
                value, d_output = loss(output, at(targets, t))
                total += (value * weights[t]).sum()
                weight += weights[t].sum()
                counts[t] += 1
                d_output = mapped(lambda d, t=t: d * weights[t][:, None], d_output)
            caches.append((t, cache, d_output))
        is_last = end >= T
        d_state = d_end if is_last and d_end is not None else mapped(np.zeros_like, state)
        for t, cache, d_output in reversed(caches):
            d_p, d_state, d_x, _ = model.backward(params, cache, d_output, d_state)
            d_params = d_p if d_params is None else add(d_params, d_p)
            d_xs[t] = add(d_xs[t], d_x)
            d_initial = add(d_initial, mapped(lambda d, t=t: np.where(reset[t][:, None], d, 0), d_state))
            d_state = mapped(lambda d, t=t: np.where(reset[t][:, None], 0, d), d_state)
        if start == 0:
            d_start = add(d_start, d_state)
    if d_params is None:
        d_params = mapped(np.zeros_like, params)
    scale = 1.0 if reduction == "sum" else 0.0 if weight == 0 else 1 / weight
    grads = mapped(lambda d: d * scale, (d_params, d_start, stacked(d_xs)))
    return (total * scale, states[-1]), grads, d_initial, counts


# Nestings of dicts, lists and tuples.


def mapped(f, tree, *trees):
    if isinstance(tree, dict):
        return {k: mapped(f, tree[k], *(t[k] for t in trees)) for k in tree}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(f, *parts) for parts in zip(tree, *trees, strict=True))
    return f(tree, *trees)


def at(tree, t):
    return mapped(lambda a: a[t], tree)


def add(a, b):
    return mapped(lambda x, y: x + y, a, b)


def sub(a, b):
    return mapped(lambda x, y: x - y, a, b)


def stacked(trees):
    return mapped(lambda *parts: np.stack(parts), *trees)


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for k in sorted(tree) for leaf in leaves(tree[k])]
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]
