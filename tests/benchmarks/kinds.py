"""Kinds of step that people differentiate through time, each of one example, with the shapes that it is measured at.

None of them was chosen for what the library does well: they are what recurrences in the literature are made of.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import conv_general_dilated

Tree: TypeAlias = Any


class Kind(NamedTuple):
    """A step of one example, `step(params, state, x) -> (state, output)`."""

    name: str
    source: str
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    params: Tree
    state: Tree  # of one example
    x: tuple[int, ...] | None  # shape of what comes in at a step, None where nothing does
    T: int
    B: int
    tolerance: float = 1e-4  # to which two ways of computing its gradient agree

    def arguments(self) -> tuple[Tree, Tree, Tree]:
        """Params, state of `[B, …]`, xs of `[T, B, …]`."""
        state = jax.tree.map(lambda s: jnp.broadcast_to(s, (self.B, *jnp.shape(s))), self.state)
        if self.x is None:
            return self.params, state, None
        return self.params, state, _normal(7, self.T, self.B, *self.x)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _matrix(seed: int, *shape: int) -> jax.Array:
    return _normal(seed, *shape) / math.sqrt(shape[-1])


def _matrices(seed: int, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return {name: _matrix(seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def _conv(kernel: jax.Array, image: jax.Array) -> jax.Array:
    """A convolution over all axes of an image but the first, its channels, of the same size."""
    pads = [(n // 2, n // 2) for n in kernel.shape[2:]]
    return conv_general_dilated(image[None], kernel, (1,) * len(pads), pads)[0]


@jax.custom_jvp
def _spike(v: jax.Array) -> jax.Array:
    """A step function with a surrogate gradient."""
    return (v > 0).astype(v.dtype)


_spike.defjvp(lambda primals, tangents: (_spike(*primals), tangents[0] / (1 + 10 * jnp.abs(primals[0])) ** 2))


# Convolutions.


def _emulator(p, u, _):
    hidden = jax.nn.gelu(_conv(p["in"], u))
    hidden = hidden + jax.nn.gelu(_conv(p["mid"], hidden))
    u = u + 0.1 * _conv(p["out"], hidden)
    return u, u


def _recurrent_convolution(p, h, x):
    h = jax.nn.relu(_conv(p["A"], h) + _conv(p["B"], x))
    return h, h.mean((1, 2))


def _convlstm(p, state, x):
    h, c = state
    i, f, g, o = jnp.split(_conv(p["A"], h) + _conv(p["B"], x) + p["b"][:, None, None], 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


# Spikes.


def _lif(p, state, x):
    v, z = state
    v = 0.9 * v * (1 - z) + p["A"] @ z + p["B"] @ x
    z = _spike(v - 1)
    return (v, z), p["C"] @ z


def _alif(p, state, x):
    v, z, a = state
    v = 0.9 * v + p["A"] @ z + p["B"] @ x - z * (1 + 1.6 * a)
    a = 0.97 * a + z
    z = _spike((v - 1 - 1.6 * a) / (1 + a))
    return (v, z, a), p["C"] @ v


# Physics and differential equations.


def _neural_ode(p, h, _):
    def f(h):
        return p["out"] @ jnp.tanh(p["in"] @ h + p["b"])

    k1 = f(h)
    k2 = f(h + 0.05 * k1)
    k3 = f(h + 0.05 * k2)
    k4 = f(h + 0.1 * k3)
    h = h + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return h, h


def _pendulums(p, state, x):
    """A chain of pendulums: the accelerations solve a linear system that depends on the angles."""
    q, v = state
    n = q.shape[0]
    order = jnp.arange(n)
    below = n - jnp.maximum(order[:, None], order[None])
    mass = below * p["length"][:, None] * p["length"][None]
    differences = q[:, None] - q[None]
    force = -(mass * jnp.sin(differences)) @ v**2 - 9.81 * below.diagonal() * p["length"] * jnp.sin(q)
    a = jnp.linalg.solve(mass * jnp.cos(differences) + 0.1 * jnp.eye(n, dtype=q.dtype), force - p["friction"] * v + x)
    v = v + 0.01 * a
    q = q + 0.01 * v
    return (q, v), (jnp.sin(q) * p["length"]).sum()


def _oscillators(p, state, x):
    """Coupled phase oscillators, eight substeps a step."""

    def substep(q, _):
        pull = (p["coupling"] * jnp.sin(q[None] - q[:, None])).sum(1)
        return q + 0.02 * (p["frequency"] + pull + x), None

    q, _ = jax.lax.scan(substep, state, None, length=8)
    return q, jnp.cos(q)


def _policy_through_physics(p, state, _):
    """A controller of particles with springs, drag and walls."""
    q, v = state
    seen = jnp.concatenate([q.ravel(), v.ravel()])
    action = jnp.tanh(p["out"] @ jax.nn.tanh(p["mid"] @ jax.nn.tanh(p["in"] @ seen))).reshape(q.shape)
    between = q[:, None] - q[None]
    distance = jnp.sqrt((between**2).sum(-1) + 1e-3)
    springs = -(between * ((distance - 1) / distance)[..., None]).sum(1)
    walls = -jnp.maximum(jnp.abs(q) - 2, 0) * jnp.sign(q)
    v = v + 0.02 * (springs + 10 * walls + action - 0.1 * v * jnp.linalg.norm(v + 1e-3))
    q = q + 0.02 * v
    return (q, v), q


def _lorenz(p, state, _):
    def f(s):
        return jnp.stack([p[0] * (s[1] - s[0]), s[0] * (p[1] - s[2]) - s[1], s[0] * s[1] - p[2] * s[2]])

    middle = state + 0.005 * f(state)
    state = state + 0.01 * f(middle)
    return state, state


def _hodgkin_huxley(p, state, x):
    """A neuron of four variables and 30 scalar params."""
    v, m, h, n = state["v"], state["m"], state["h"], state["n"]

    def rate(of):
        return p[f"{of}a"] * jax.nn.sigmoid((v - p[f"{of}b"]) / p[f"{of}c"]) + p[f"{of}d"] * jnp.exp(
            -((v - p[f"{of}e"]) ** 2)
        )

    gates = {
        of: gate + 0.05 * (rate(f"{of}+") * (1 - gate) - rate(f"{of}-") * gate)
        for of, gate in (("m", m), ("h", h), ("n", n))
    }
    current = p["gNa"] * m**3 * h * (v - p["eNa"]) + p["gK"] * n**4 * (v - p["eK"]) + p["gL"] * (v - p["eL"])
    v = v + 0.05 * (x - current)
    return {"v": v, **gates}, v


# Estimation.


def _kalman(p, state, x):
    mean, cov = state
    mean, cov = p["F"] @ mean, p["F"] @ cov @ p["F"].T + p["Q"] @ p["Q"].T
    innovation = p["H"] @ cov @ p["H"].T + jnp.eye(x.shape[0], dtype=x.dtype)
    gain = jnp.linalg.solve(innovation, p["H"] @ cov).T
    error = x - p["H"] @ mean
    return (mean + gain @ error, cov - gain @ p["H"] @ cov), error


# Memories.


def _delta_rule(p, S, x):
    k, v, q, b = p["k"] @ x, p["v"] @ x, p["q"] @ x, jax.nn.sigmoid(p["b"] @ x)
    k = k / jnp.linalg.norm(k)
    S = S + jnp.outer(b * (v - S @ k), k)
    return S, S @ q


def _addressable(p, state, x):
    M, h = state
    read = jax.nn.softmax(M @ (p["r"] @ h)) @ M
    h = jnp.tanh(p["A"] @ h + p["B"] @ x + p["C"] @ read)
    w = jax.nn.softmax(M @ (p["w"] @ h))
    M = M * (1 - jnp.outer(w, jax.nn.sigmoid(p["e"] @ h))) + jnp.outer(w, jnp.tanh(p["a"] @ h))
    return (M, h), h


def _attention(p, state, x):
    """A decoder that attends to what an encoder made, which is part of its state and stays as it is."""
    memory, h = state
    context = jax.nn.softmax(memory @ (p["Q"] @ h)) @ memory
    h = jnp.tanh(p["A"] @ h + x + context)
    return (memory, h), h


def _cache(p, state, x):
    """Attention over all that came before: keys and values are written row by row."""
    keys, values, t = state
    keys = jax.lax.dynamic_update_index_in_dim(keys, p["k"] @ x, t, 0)
    values = jax.lax.dynamic_update_index_in_dim(values, p["v"] @ x, t, 0)
    scores = jnp.where(jnp.arange(keys.shape[0]) <= t, keys @ (p["q"] @ x), -1e9)
    return (keys, values, t + 1), jax.nn.softmax(scores) @ values


def _delay_line(p, state, x):
    line, h = state
    h = jnp.tanh(p["A"] @ h + p["B"] @ x + p["C"] @ line[-1])
    line = jnp.concatenate([h[None], line[:-1]])
    return (line, h), h


# Networks.


def _fixed_point(p, h, x):
    z = jax.lax.fori_loop(0, 6, lambda _, z: jnp.tanh(p["A"] @ z + p["B"] @ x + p["C"] @ h), jnp.zeros_like(h))
    return z, z


def _messages(p, h, x):
    """A graph network on a ring with chords: gather, messages, scatter."""
    n = h.shape[0]
    source = jnp.concatenate([jnp.arange(n), jnp.arange(n), jnp.arange(n)])
    target = jnp.concatenate([(jnp.arange(n) + k) % n for k in (1, 2, 7)])
    message = jax.nn.relu(h[source] @ p["source"] + h[target] @ p["target"])
    got = jnp.zeros_like(h).at[target].add(message)
    h = jnp.tanh(h @ p["A"] + got @ p["M"] + x)
    return h, h.mean(0)


def _mingru(p, h, x):
    z = jax.nn.sigmoid(p["z"] @ x)
    h = (1 - z) * h + z * (p["h"] @ x)
    return h, p["C"] @ h


def _lru(p, h, x):
    decay = jnp.exp(-jnp.exp(p["decay"]))
    turned = jnp.stack(
        [h[0] * jnp.cos(p["turn"]) - h[1] * jnp.sin(p["turn"]), h[0] * jnp.sin(p["turn"]) + h[1] * jnp.cos(p["turn"])]
    )
    h = decay[None] * turned + jnp.stack([p["B"] @ x, p["D"] @ x])
    return h, p["C"] @ h[0] + p["E"] @ h[1]


def _layer_norm_block(p, h, x):
    def norm(a):
        a = a - a.mean()
        return a * jax.lax.rsqrt((a * a).mean() + 1e-5)

    z = jax.nn.sigmoid(norm(p["Az"] @ h) * p["gz"] + norm(p["Bz"] @ x))
    new = jnp.tanh(norm(p["A"] @ h) * p["g"] + norm(p["B"] @ x))
    h = (1 - z) * h + z * new
    h = h + p["out"] @ jax.nn.gelu(p["in"] @ norm(h))
    return h, h


def _gru(p, h, x):
    a, b = p["A"] @ h, p["B"] @ x
    (ar, az, an), (br, bz, bn) = jnp.split(a, 3), jnp.split(b, 3)
    z = jax.nn.sigmoid(az + bz)
    h = z * h + (1 - z) * jnp.tanh(bn + jax.nn.sigmoid(ar + br) * an)
    return h, p["C"] @ h


def _lstm(p, state, x):
    h, c = state
    i, f, g, o = jnp.split(p["A"] @ h + p["B"] @ x + p["b"], 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), p["C"] @ h


def _sparse(p, h, x):
    """A recurrent matrix of few entries: gather, multiply, scatter."""
    rows, cols = SPARSE
    h = jnp.tanh(jnp.zeros_like(h).at[rows].add(p["entries"] * h[cols]) + p["B"] @ x)
    return h, h


SPARSE = tuple(np.random.default_rng(3).integers(0, 256, size=(2, 2048)))


def _scalars(p, state, x):
    """Sixty populations, each a scalar of its own with a scalar param of its own."""
    total = sum(state)
    new = [jnp.tanh(w * s + 0.01 * total + x) for w, s in zip(p, state, strict=True)]
    return new, total


def _chain(p, h, x):
    """Elementwise operations alone, many of them."""
    for i in range(8):
        h = h + 0.1 * jnp.sin(p["w"][i] * h + p["b"][i]) * jnp.exp(-(h * h)) + 0.01 * x
    return h, h


def _mixed(p, h, x):
    """Products in bfloat16, the state in float32."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
    driven = half["A"] @ h.astype(jnp.bfloat16) + half["B"] @ x.astype(jnp.bfloat16)
    h = 0.9 * h + 0.1 * jnp.tanh(driven.astype(jnp.float32))
    return h, h


def _looked_at(p, h, x):
    """Outputs that are only looked at: no gradient goes through what is plotted."""
    h = jnp.tanh(p["A"] @ h + p["B"] @ x)
    spectrum = jax.lax.stop_gradient(jnp.abs(jnp.fft.rfft(h)))
    return h, {"y": p["C"] @ h, "spectrum": spectrum}


def _rssm(p, state, x):
    """A world model: a deterministic and a stochastic state, with noise from a key in the state."""
    h, s, key = state
    key, draw = jax.random.split(key)
    pre = jax.nn.elu(p["in"] @ jnp.concatenate([s, x]))
    h = _gru({"A": p["A"], "B": p["B"], "C": p["C"]}, h, pre)[0]
    mean, std = jnp.split(p["stats"] @ jax.nn.elu(p["mid"] @ h), 2)
    s = mean + jax.nn.softplus(std) * jax.random.normal(draw, mean.shape, mean.dtype)
    return (h, s, key), jnp.concatenate([h, s])


def _experts(p, h, x):
    """One of eight matrices per example, chosen by its input."""
    chosen = jnp.argmax(p["gate"] @ x)
    h = jnp.tanh(p["A"][chosen] @ h + p["B"] @ x)
    return h, h


def _tokens(p, state, _):
    """Rows of an embedding, looked up by an index that is part of the state."""
    h, token = state
    h = jnp.tanh(p["A"] @ h + p["E"][token])
    return (h, jnp.argmax(p["C"] @ h)), p["C"] @ h


def kinds() -> Iterator[Kind]:
    """All of them."""
    zeros, ones = (functools.partial(of, dtype=jnp.float32) for of in (jnp.zeros, jnp.ones))
    yield Kind(
        "convolutional emulator, 1-d",
        "K. Um et al., Solver-in-the-loop, 2020",
        _emulator,
        {"in": 0.1 * _normal(0, 32, 2, 5), "mid": 0.1 * _normal(1, 32, 32, 5), "out": 0.1 * _normal(2, 2, 32, 5)},
        _normal(3, 2, 64),
        None,
        40,
        8,
    )
    yield Kind(
        "recurrent convolution, 2-d",
        "M. Liang and X. Hu, Recurrent convolutional networks, 2015",
        _recurrent_convolution,
        {"A": 0.1 * _normal(0, 16, 16, 3, 3), "B": 0.1 * _normal(1, 16, 3, 3, 3)},
        zeros((16, 16, 16)),
        (3, 16, 16),
        24,
        8,
    )
    yield Kind(
        "ConvLSTM",
        "X. Shi et al., Convolutional LSTM network, 2015",
        _convlstm,
        {"A": 0.1 * _normal(0, 32, 8, 3, 3), "B": 0.1 * _normal(1, 32, 3, 3, 3), "b": zeros(32)},
        (zeros((8, 16, 16)), zeros((8, 16, 16))),
        (3, 16, 16),
        24,
        8,
    )
    spiking = _matrices(0, A=(128, 128), B=(128, 64), C=(16, 128))
    for T in (16, 256):
        yield Kind(
            f"spikes, LIF, {T} steps",
            "E. Neftci, H. Mostafa and F. Zenke, Surrogate gradient learning, 2019",
            _lif,
            spiking,
            (zeros(128), zeros(128)),
            (64,),
            T,
            32,
        )
    yield Kind(
        "spikes, ALIF",
        "G. Bellec et al., Long short-term memory in spiking networks, 2018",
        _alif,
        spiking,
        (zeros(128), zeros(128), zeros(128)),
        (64,),
        200,
        32,
    )
    yield Kind(
        "neural ODE",
        "R. Chen et al., Neural ordinary differential equations, 2018",
        _neural_ode,
        _matrices(0, **{"in": (64, 16), "out": (16, 64)}) | {"b": zeros(64)},
        _normal(4, 16),
        None,
        100,
        32,
    )
    yield Kind(
        "rigid-body chain",
        "R. Featherstone, Rigid body dynamics algorithms, 2008",
        _pendulums,
        {"length": ones(6), "friction": 0.1 * ones(6)},
        (0.3 * ones(6), zeros(6)),
        (6,),
        100,
        16,
    )
    yield Kind(
        "oscillators with substeps",
        "Y. Kuramoto, Self-entrainment of coupled oscillators, 1975",
        _oscillators,
        {"coupling": 0.1 * _normal(0, 24, 24), "frequency": _normal(1, 24)},
        _normal(2, 24),
        (24,),
        64,
        8,
    )
    yield Kind(
        "policy through physics",
        "C. Freeman et al., Brax, 2021",
        _policy_through_physics,
        _matrices(0, **{"in": (64, 32), "mid": (64, 64), "out": (16, 64)}),
        (_normal(3, 8, 2), zeros((8, 2))),
        None,
        100,
        16,
    )
    yield Kind(
        "Lorenz system",
        "E. Lorenz, Deterministic nonperiodic flow, 1963",
        _lorenz,
        jnp.asarray([10.0, 28.0, 2.667], jnp.float32),
        ones(3),
        None,
        300,
        16,
    )
    names = [f"{of}{way}{c}" for of in "mhn" for way in "+-" for c in "abcde"]
    yield Kind(
        "neuron of 36 scalar params",
        "A. Hodgkin and A. Huxley, Membrane current, 1952",
        _hodgkin_huxley,
        {
            name: jnp.asarray(0.1 + 0.02 * i, jnp.float32)
            for i, name in enumerate([*names, "gNa", "eNa", "gK", "eK", "gL", "eL"])
        },
        {name: jnp.asarray(0.1, jnp.float32) for name in "vmhn"},
        (),
        300,
        32,
    )
    yield Kind(
        "Kalman filter",
        "T. Haarnoja et al., Backprop KF, 2016",
        _kalman,
        _matrices(0, F=(8, 8), Q=(8, 8), H=(4, 8)),
        (zeros(8), jnp.eye(8, dtype=jnp.float32)),
        (4,),
        64,
        16,
    )
    yield Kind(
        "delta rule",
        "I. Schlag, K. Irie and J. Schmidhuber, Fast weight programmers, 2021",
        _delta_rule,
        _matrices(0, k=(32, 64), v=(32, 64), q=(32, 64), b=(1, 64)),
        zeros((32, 32)),
        (64,),
        128,
        16,
    )
    yield Kind(
        "addressable memory",
        "A. Graves, G. Wayne and I. Danihelka, Neural Turing machines, 2014",
        _addressable,
        _matrices(0, r=(20, 64), w=(20, 64), A=(64, 64), B=(64, 16), C=(64, 20), e=(20, 64), a=(20, 64)),
        (0.1 * _normal(9, 64, 20), zeros(64)),
        (16,),
        64,
        8,
    )
    yield Kind(
        "attention over a carried memory",
        "D. Bahdanau, K. Cho and Y. Bengio, Align and translate, 2015",
        _attention,
        _matrices(0, A=(64, 64), Q=(64, 64)),
        (_normal(5, 100, 64), zeros(64)),
        (64,),
        128,
        8,
    )
    yield Kind(
        "attention over a cache",
        "A. Vaswani et al., Attention is all you need, 2017",
        _cache,
        _matrices(0, k=(32, 64), v=(32, 64), q=(32, 64)),
        (zeros((96, 32)), zeros((96, 32)), jnp.asarray(0)),
        (64,),
        96,
        8,
    )
    yield Kind(
        "delay line",
        "T. Lin et al., Learning long-term dependencies in NARX networks, 1996",
        _delay_line,
        _matrices(0, A=(64, 64), B=(64, 16), C=(64, 64)),
        (zeros((32, 64)), zeros(64)),
        (16,),
        256,
        16,
    )
    yield Kind(
        "inner fixed point",
        "S. Bai, Z. Kolter and V. Koltun, Deep equilibrium models, 2019",
        _fixed_point,
        _matrices(0, A=(64, 64), B=(64, 16), C=(64, 64)),
        zeros(64),
        (16,),
        64,
        16,
    )
    yield Kind(
        "graph messages",
        "J. Gilmer et al., Neural message passing, 2017",
        _messages,
        _matrices(0, source=(16, 16), target=(16, 16), A=(16, 16), M=(16, 16)),
        _normal(6, 32, 16),
        (32, 16),
        64,
        8,
    )
    yield Kind(
        "minGRU",
        "L. Feng et al., Were RNNs all we needed?, 2024",
        _mingru,
        _matrices(0, z=(128, 64), h=(128, 64), C=(32, 128)),
        zeros(128),
        (64,),
        512,
        16,
    )
    yield Kind(
        "LRU",
        "A. Orvieto et al., Resurrecting recurrent neural networks, 2023",
        _lru,
        _matrices(0, B=(64, 32), D=(64, 32), C=(32, 64), E=(32, 64))
        | {"decay": _normal(8, 64), "turn": _normal(9, 64)},
        zeros((2, 64)),
        (32,),
        512,
        16,
    )
    yield Kind(
        "layer norm block",
        "J. Ba, J. Kiros and G. Hinton, Layer normalization, 2016",
        _layer_norm_block,
        _matrices(0, Az=(64, 64), A=(64, 64), Bz=(64, 32), B=(64, 32), out=(64, 128), **{"in": (128, 64)})
        | {"gz": ones(64), "g": ones(64)},
        zeros(64),
        (32,),
        128,
        32,
    )
    gru = _matrices(0, A=(384, 128), B=(384, 64), C=(16, 128))
    lstm = _matrices(0, A=(512, 128), B=(512, 64), C=(16, 128)) | {"b": zeros(512)}
    for T in (8, 64):
        yield Kind(
            f"GRU, {T} steps",
            "K. Cho et al., Learning phrase representations, 2014",
            _gru,
            gru,
            zeros(128),
            (64,),
            T,
            32,
        )
        yield Kind(
            f"LSTM, {T} steps",
            "S. Hochreiter and J. Schmidhuber, Long short-term memory, 1997",
            _lstm,
            lstm,
            (zeros(128), zeros(128)),
            (64,),
            T,
            32,
        )
    yield Kind(
        "sparse recurrence",
        "D. Mocanu et al., Scalable training with sparse connectivity, 2018",
        _sparse,
        {"entries": 0.3 * _normal(1, 2048), "B": _matrix(2, 256, 16)},
        zeros(256),
        (16,),
        128,
        8,
    )
    yield Kind(
        "sixty scalar leaves",
        "H. Wilson and J. Cowan, Excitatory and inhibitory interactions, 1972",
        _scalars,
        list(0.5 * _normal(1, 60)),
        [jnp.asarray(0.01 * i, jnp.float32) for i in range(60)],
        (),
        200,
        16,
    )
    yield Kind(
        "elementwise chain",
        "S. Li et al., Independently recurrent neural network, 2018",
        _chain,
        {"w": _normal(1, 8, 128), "b": _normal(2, 8, 128)},
        _normal(3, 128),
        (128,),
        200,
        16,
    )
    yield Kind(
        "mixed precision",
        "P. Micikevicius et al., Mixed precision training, 2018",
        _mixed,
        _matrices(0, A=(128, 128), B=(128, 64)),
        zeros(128),
        (64,),
        128,
        16,
        tolerance=2e-2,
    )
    yield Kind(
        "outputs only looked at",
        "J. Elman, Finding structure in time, 1990",
        _looked_at,
        _matrices(0, A=(128, 128), B=(128, 64), C=(16, 128)),
        zeros(128),
        (64,),
        256,
        16,
    )
    yield Kind(
        "world model",
        "D. Hafner et al., Learning latent dynamics, 2019",
        _rssm,
        _matrices(
            0, **{"in": (128, 36), "A": (384, 128), "B": (384, 128), "C": (1, 128), "mid": (64, 128), "stats": (64, 64)}
        ),
        (zeros(128), zeros(32), jax.random.key(0)),
        (4,),
        50,
        32,
    )
    yield Kind(
        "experts",
        "N. Shazeer et al., Mixture-of-experts layer, 2017",
        _experts,
        _matrices(0, A=(8, 64, 64), B=(64, 16), gate=(8, 16)),
        zeros(64),
        (16,),
        128,
        16,
    )
    yield Kind(
        "tokens fed back",
        "A. Graves, Generating sequences, 2013",
        _tokens,
        _matrices(0, A=(128, 128), E=(256, 128), C=(256, 128)),
        (zeros(128), jnp.asarray(3)),
        None,
        64,
        16,
    )
