"""Two lags, and a horizon that reaches one or both.

A fair coin x_t is thrown at each step, and a second one, y_t, which depends on the throws of 3 and 8 steps before:

    P(y_t = 1) = 1/2 + 1/2 x_{t−3} − 1/4 x_{t−8}

The cross-entropy of one who knows neither lag is 0.6616 nats, 0.5192 with the first and 0.4545 with both. As it was
published: networks of 4 units, an update for each window of k1 = k2 = 5 steps, 1,000 of them, learn the first lag only;
networks of 16 units with windows of 10 learn both.

And what it does not say: that k2 bounds what can be learnt. Where every loss reaches exactly k2 steps back (k1 = 1) and
the network, h_t = tanh(A h_{t−1} + B x_t + b + noise), forgets what it does not keep on purpose, k2 = 4 learns the
first lag, but k2 = 5 both: the oldest step of its windows reads the constant h_{t−5}, where x_{t−8} still is, because
the network keeps everything for 3 steps, for the sake of the first lag.

Source: S. Pitis, "Recurrent neural networks in TensorFlow I", 2016.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jax_bptt as jb
from jax_bptt import plots
from tests.evidence.page import Result, Tell

LAGS = (3, 8)
"""Of which coins the second coin depends."""
KNOWN = {"neither": (), "the first": LAGS[:1], "both": LAGS}
"""What may be known, by name."""
PUBLISHED = {5: ("the first", 4, 1_000), 10: ("both", 16, 3_000)}
"""By k1 = k2 the lags that are learnt, the units, and the updates."""
SEEDS, STREAMS = 5, 200
"""Networks of each, and the streams of coins that they read."""
HORIZONS = {4: "the first", 5: "both"}
"""The k2 that are tried with k1 = 1, and the lags that they learn."""
HIDDEN, NOISE = 24, 0.4
"""Units, and the standard deviation of what is added to the input of each at each step."""
T, B, UPDATES, RATE = 64, 32, 4000, 3e-3
"""Steps and examples of a batch, updates by Adam, and its rate."""
HELD_OUT = (2000, 50)
"""Steps and examples of the test, the cross-entropy of which is known to about 0.001 nats."""
TOLERANCE = 0.01
"""In nats, of the distance to a floor."""


def run(tell: Tell) -> Result:
    """Train with each horizon, and compare with the floors."""
    floors = {name: floor(known) for name, known in KNOWN.items()}
    rows = [("windows", "units", "held-out cross-entropy (nats)", "lags learnt", "floor (nats)")]
    rounded = [round(value, 4) for value in floors.values()]
    claims, curves = {f"The floors are {rounded} nats": rounded == [0.6616, 0.5192, 0.4545]}, {}
    for k, (lags, units, updates) in PUBLISHED.items():
        found = [train_as_published(k, units, updates, seed) for seed in range(SEEDS)]
        tell(f"k1 = k2 = {k}: {np.round(found, 4)} nats, held out")
        middle = float(np.median(found))
        rows.append(
            (f"k1 = k2 = {k}", str(units), ", ".join(f"{one:.4f}" for one in found), lags, f"{floors[lags]:.4f}")
        )
        claims[f"k1 = k2 = {k} learns {lags}: {middle:.4f} nats, the median of {SEEDS}, and none learns more"] = (
            abs(middle - floors[lags]) < TOLERANCE and min(found) > floors[lags] - TOLERANCE
        )
    for k2, lags in HORIZONS.items():
        curves[k2], found = train(k2)
        tell(f"k1 = 1, k2 = {k2}: {found:.4f} nats, held out")
        rows.append((f"k1 = 1, k2 = {k2}", str(HIDDEN), f"{found:.4f}", lags, f"{floors[lags]:.4f}"))
        claims[f"k1 = 1, k2 = {k2} learns {lags}: {found:.4f} nats"] = abs(found - floors[lags]) < TOLERANCE
    return Result(rows, draw(curves, floors), claims)


def floor(known: tuple[int, ...]) -> float:
    """The cross-entropy of y_t given the coins at some lags, H(y_t | x_{t−k}, k known), over all that may be thrown."""
    thrown = np.stack(np.meshgrid(*[[0, 1]] * len(LAGS), indexing="ij"), -1).reshape(-1, len(LAGS))  # [4, 2]
    p = probability(thrown[:, 0], thrown[:, 1])
    seen = thrown[:, [LAGS.index(lag) for lag in known]]
    given = np.array([p[(seen == s).all(axis=1)].mean() for s in seen])
    terms = [q * np.log(q, where=q > 0, out=np.zeros_like(q)) for q in (given, 1 - given)]
    return float(-np.mean(terms[0] + terms[1]))


def probability(first: Any, second: Any) -> Any:
    """P(y_t = 1) given the coins at the two lags."""
    return 0.5 + 0.5 * first - 0.25 * second


def throw(key: jax.Array, steps: int, batch: int) -> tuple[Any, jax.Array, jax.Array]:
    """Coins as ±1 with the noise of each unit, y_t, and P(y_t = 1), all of `[steps, batch, …]`."""
    key_x, key_y, key_noise = jax.random.split(key, 3)
    coins = jax.random.bernoulli(key_x, 0.5, (LAGS[1] + steps, batch)).astype(jnp.float32)
    p = probability(coins[LAGS[1] - LAGS[0] : -LAGS[0]], coins[: -LAGS[1]])
    noise = NOISE * jax.random.normal(key_noise, (steps, batch, HIDDEN))
    return (2 * coins[LAGS[1] :, :, None] - 1, noise), jax.random.bernoulli(key_y, p).astype(jnp.float32), p


def network() -> jb.Cell:
    """An Elman network with noise, whose recurrent weights forget: 0.3³ < 0.03 of a state is left after 3 steps."""
    forgets = jax.nn.initializers.orthogonal(0.3)
    quiet = jb.cells.elman(1, HIDDEN, 1, bias=True, output_bias=True, recurrent_init=forgets)

    def step(params: Any, h_tm1: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        coin, noise = x
        h_t = jnp.tanh(params["A"] @ h_tm1 + (params["B"] @ coin + params["b"] + noise))
        return h_t, params["C"] @ h_t + params["c"]

    return jb.Cell(quiet.init, quiet.initial_state, step)


def train_as_published(k: int, units: int, updates: int, seed: int) -> float:
    """The loss of a plain network, trained by Adagrad on windows of k steps, on a stream held out."""
    cell = jb.cells.elman(1, units, 1, bias=True, output_bias=True, recurrent_init=jax.nn.initializers.glorot_uniform())
    online = jb.training.train_online(cell, loss, optax.adagrad(0.1), k, k, reduction="mean")
    begin = online.init(cell.init(jax.random.key(seed)), cell.initial_state(STREAMS))
    (coins, _), targets, _ = throw(jax.random.key(100 + seed), k * updates, STREAMS)
    return held_out(cell, jax.jit(online.update)(begin, coins, targets)[0].params, lambda xs: xs[0])


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(output[0], target)


def held_out(cell: jb.Cell, params: Any, inputs: Callable[[Any], Any]) -> float:
    """The cross-entropy against P(y_t = 1)."""
    xs, _, p = throw(jax.random.key(2), *HELD_OUT)
    _, outputs = jax.jit(lambda params: jb.unroll(cell, params, cell.initial_state(HELD_OUT[1]), inputs(xs)))(params)
    return float(optax.sigmoid_binary_cross_entropy(outputs[LAGS[1] :, :, 0], p[LAGS[1] :]).mean())


def train(k2: int) -> tuple[np.ndarray, float]:
    """The loss at each update, and that against P(y_t = 1) on a stream held out."""
    cell, optimizer = network(), optax.adam(RATE)
    update = jb.training.train_step(jb.truncated_bptt(cell, loss, 1, k2, reduction="mean"), optimizer)

    def one(train_state: Any, key: jax.Array) -> tuple[Any, jb.training.Metrics]:
        xs, targets, _ = throw(key, T, B)
        train_state = train_state._replace(carry=cell.initial_state(B))
        return update(train_state, xs, targets, mask=jnp.arange(T) >= LAGS[1])  # the second lag is there

    begin = jb.training.init(cell.init(jax.random.key(0)), optimizer, cell.initial_state(B))
    keys = jax.random.split(jax.random.key(1), UPDATES)
    train_state, metrics = jax.jit(lambda begin: jax.lax.scan(one, begin, keys))(begin)
    return np.asarray(metrics.loss), held_out(cell, train_state.params, lambda xs: xs)


def draw(curves: Mapping[int, np.ndarray], floors: Mapping[str, float]) -> Figure:
    """The loss of training with each horizon, between the floors."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    ax = figure.add_subplot()
    for color, (k2, losses) in zip(plots.COLORS, curves.items(), strict=False):
        ax.plot(plots.running_mean(losses), color=color, linewidth=1.8, label=f"k2 = {k2}")
    for name, value in floors.items():
        ax.axhline(value, color=plots.GREY, linestyle=":", linewidth=1.2)
        ax.text(1.01, value, f"{name}: {value:.4f}", transform=ax.get_yaxis_transform(), va="center", color=plots.GREY)
    ax.set(xlabel="update", ylabel="cross-entropy (nats), running mean", title="Which lags are learnt, k1 = 1")
    ax.set(xlim=(0, UPDATES), ylim=(0.44, 0.7))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper right", ncols=len(curves))
    return figure
