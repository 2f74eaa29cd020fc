"""Copying with a horizon that adapts.

    x_t: one of 8 symbols, by chance;    y_t = x_{t−d},    d drawn from 5 … 9 for each sequence, told at each step

A horizon of 5 steps is too short for it, one of 10 is enough, and longer ones cost more. The horizon that adapts, the
shortest whose estimated relative bias is below a tolerance, is to be as good as the best of them, at no more work.

Source: C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to control gradient
bias", 2019, table C.1: perplexity 1.646 with K = 5, 1.036 with K = 10. The task is theirs in kind, not to the letter.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jax_bptt as jb
from jax_bptt import plots
from tests.evidence.page import Result, Tell

SYMBOLS, SHORTEST, LONGEST = 8, 5, 9
T, B, H = 40, 32, 64
K1, HORIZONS = 5, (5, 10, 20, 40)
TOLERANCE, EVERY, UPDATES = 0.7, 100, 2_000
"""(Theirs were 0.1, 0.5 and 0.9. The gradients of a batch have noise in them, which counts as bias.)"""
HELD_OUT = 64
"""Chunks."""
CELL = jb.cells.gru(SYMBOLS + LONGEST - SHORTEST + 1, H, SYMBOLS, output_bias=True)
LOSS = jb.losses.softmax_cross_entropy
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))


def draw_chunk(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs and targets of a chunk, and which of the targets can be known."""
    of_symbols, of_lags = jax.random.split(key)
    symbols = jax.random.randint(of_symbols, (T, B), 0, SYMBOLS)
    lags = jax.random.randint(of_lags, (B,), SHORTEST, LONGEST + 1)
    source = jnp.arange(T)[:, None] - lags
    targets = jnp.take_along_axis(symbols, jnp.maximum(source, 0), axis=0)
    told = jnp.broadcast_to(jax.nn.one_hot(lags - SHORTEST, LONGEST - SHORTEST + 1), (T, B, LONGEST - SHORTEST + 1))
    return jnp.concatenate([jax.nn.one_hot(symbols, SYMBOLS), told], 2), targets, source >= 0


class Trained(NamedTuple):
    """What came of a training."""

    perplexity: float  # of held-out chunks
    losses: np.ndarray  # of each update, in nats
    horizons: np.ndarray  # of each update, in steps
    work: float  # steps that δ was run for each window, in the mean over updates


def train_with(horizon: int | None) -> Trained:
    """With a horizon that stays, or, where None, with one that adapts."""
    of = functools.partial(jb.truncated_bptt, CELL, LOSS, K1, reduction="mean")
    if horizon is None:
        pair = jb.training.train_adaptively(of, OPTIMIZER, HORIZONS, TOLERANCE, every=EVERY)
        begin, update = pair.init(CELL.init(jax.random.key(0)), CELL.initial_state(B)), pair.update
    else:
        begin = jb.training.init(CELL.init(jax.random.key(0)), OPTIMIZER, CELL.initial_state(B))
        update = jb.training.train_step(of(horizon), OPTIMIZER)

    def one(train_state: jb.training.TrainState, key: jax.Array) -> tuple[jb.training.TrainState, tuple]:
        xs, targets, known = draw_chunk(key)
        state, carry = CELL.initial_state(B), train_state.carry
        train_state = train_state._replace(carry=state if horizon else carry._replace(state=state))
        after, metrics = update(train_state, xs, targets, mask=known)
        return after, (metrics.loss, jnp.asarray(horizon or after.carry.horizon))

    keys = jax.random.split(jax.random.key(1), UPDATES)
    after, (losses, horizons) = jax.jit(lambda begin: jax.lax.scan(one, begin, keys))(begin)
    estimates = 0 if horizon else sum(HORIZONS) / EVERY
    return Trained(held_out(after.params), np.asarray(losses), np.asarray(horizons), float(horizons.mean()) + estimates)


def held_out(params: dict[str, jax.Array]) -> float:
    """The perplexity of chunks that were not trained on."""
    evaluate = jb.training.evaluate(CELL, LOSS)

    def of(key: jax.Array) -> jax.Array:
        xs, targets, known = draw_chunk(key)
        return evaluate(params, CELL.initial_state(B), xs, targets, mask=known)[0]

    return float(
        jnp.exp(jax.jit(lambda keys: jax.lax.map(of, keys).mean())(jax.random.split(jax.random.key(2), HELD_OUT)))
    )


def run(tell: Tell) -> Result:
    runs = {}
    for horizon in (*HORIZONS, None):
        name = f"K = {horizon}" if horizon else "adaptive"
        runs[name] = train_with(horizon)
        tell(f"{name}: perplexity {runs[name].perplexity:.3f}, work {runs[name].work:.1f}")
    fixed = {name: of for name, of in runs.items() if name != "adaptive"}
    adaptive, best = runs["adaptive"], min(fixed, key=lambda name: fixed[name].perplexity)
    too_short, enough = (runs[f"K = {K}"].perplexity for K in (5, 10))
    lengths = f"K = 5 is too short, K = 10 is enough: perplexity {too_short:.3f} and {enough:.3f}"
    as_good = f"adaptive, {adaptive.perplexity:.3f}, within 5 % of the best, {best}, {runs[best].perplexity:.3f}"
    good = [of.work for of in fixed.values() if of.perplexity < 1.05 * runs[best].perplexity]
    work = f"at no more work: δ run over {adaptive.work:.1f} steps a window with estimates; of those as good {good}"
    claims = {
        lengths: too_short > 1.5 > 1.2 > enough,
        as_good: adaptive.perplexity < 1.05 * runs[best].perplexity,
        work: adaptive.work <= min(good),
    }
    rows = [("horizon", "perplexity, held out", "steps of δ a window")]
    rows += [(name, f"{of.perplexity:.3f}", f"{of.work:.1f}") for name, of in runs.items()]
    return Result(rows, draw(runs), claims)


def draw(runs: dict[str, Trained]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, of) in enumerate(runs.items()):
        color, width = ("black", 2.2) if name == "adaptive" else (plots.COLORS[i], 1.6)
        left.plot(np.exp(plots.running_mean(of.losses)), color=color, linewidth=width, label=name)
    left.set(xlabel="update", ylabel="perplexity", title="Copying", yscale="log")
    left.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    left.minorticks_off()
    right.plot(runs["adaptive"].horizons, color="black", linewidth=1.8)
    right.set(xlabel="update", ylabel="horizon K (steps)", title=f"The horizon that adapts, tolerance {TOLERANCE:g}")
    right.set_ylim(0, None)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize="small")
    return figure
