"""Gradients that explode, and clipping.

The temporal order task (Hochreiter & Schmidhuber, "Long short-term memory", 1997): a sequence of T distractors out of
c, d, e, f, but for two symbols out of A, B, one at a step in [T/10, 2T/10], one in [4T/10, 5T/10]. At the end, and only
there, it has to be told which two came, and in what order: AA, AB, BA or BB. The network is a simple one,

    h_t = tanh(A h_{t−1} + B x_t + b),    ŷ_T = softmax(C h_T + c),    A orthogonal at the outset

Pascanu, Mikolov & Bengio ("On the difficulty of training recurrent neural networks", 2013) show that gradient descent
succeeds more seldom the longer the sequences are, and that it goes on succeeding if gradients are clipped,

    g ← g · min(1, threshold / ‖g‖)

A network has succeeded if it tells wrongly less than 1 % of sequences that it did not see. Both ways begin with the
same weights, read the same sequences, and have the same rate; two rates are tried.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jax_bptt as jb
from jax_bptt import plots
from tests.evidence.page import Result, Tell

LENGTHS = (20, 40)
"""Steps T of a sequence."""
RATES = (0.03, 0.1)
"""Of gradient descent."""
SEEDS, UPDATES = 3, 2000
"""Networks of each kind, and updates of each."""
HIDDEN, B, THRESHOLD = 50, 20, 1.0
"""Units, sequences of a batch, and the norm to which gradients are clipped; the paper's."""
HELD_OUT = 2000
"""Sequences of the test."""
CLASSES, SYMBOLS = 4, 6
"""Orders of two symbols; A and B, and four distractors."""


class Kind(NamedTuple):
    """What is tried."""

    steps: int
    rate: float
    clipped: bool


def run(tell: Tell) -> Result:
    """Train networks of each kind, and count those that succeed."""
    wrong: dict[Kind, np.ndarray] = {}  # the share of sequences told wrongly, [SEEDS]
    largest: dict[Kind, float] = {}  # the largest norm of a gradient
    for kind in (Kind(steps, rate, clipped) for steps in LENGTHS for rate in RATES for clipped in (True, False)):
        one = jax.jit(lambda key, kind=kind: train(kind, key))
        found = [one(key) for key in jax.random.split(jax.random.key(0), SEEDS)]
        wrong[kind] = np.array([float(share) for share, _ in found])
        largest[kind] = max(float(norm) for _, norm in found)
        tell(f"{kind}: wrong {np.round(wrong[kind], 3)}, largest gradient {largest[kind]:.3g}")
    succeeded = {kind: int((shares < 0.01).sum()) for kind, shares in wrong.items()}
    head = ("T", "rate", "clipped", "succeeded", "told wrongly (median)", "largest norm of a gradient")
    lines = [
        (str(kind.steps), str(kind.rate), "yes" if kind.clipped else "no", f"{succeeded[kind]} of {SEEDS}",
         f"{100 * np.median(wrong[kind]):.1f} %", f"{largest[kind]:.3g}")
        for kind in wrong
    ]  # fmt: skip
    with_, without = (sum(n for kind, n in succeeded.items() if kind.clipped == clipped) for clipped in (True, False))
    longest = LENGTHS[-1]
    at_longest = {
        clipped: sum(n for kind, n in succeeded.items() if kind.steps == longest and kind.clipped == clipped)
        for clipped in (True, False)
    }
    runs = SEEDS * len(RATES)
    claims = {
        f"With clipping {with_} of {runs * len(LENGTHS)} networks succeed, without {without}: at least a third of all "
        "more": with_ - without >= runs * len(LENGTHS) / 3,
        f"At T = {longest} {at_longest[True]} of {runs} succeed with clipping, at least half, and without it "
        f"{at_longest[False]}, less than half of these": at_longest[True] >= runs / 2
        and 2 * at_longest[False] < at_longest[True],
    }
    return Result([head, *lines], draw(wrong), claims)


def sequences(key: jax.Array, steps: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Symbols `[steps, batch, SYMBOLS]`, and the class at every step, `[steps, batch]`."""
    key_symbols, key_pair, *key_places = jax.random.split(key, 4)
    distractors = jax.random.randint(key_symbols, (steps, batch), 2, SYMBOLS)
    first, second = jax.random.randint(key_pair, (2, batch), 0, 2)
    place, later = (
        jax.random.randint(key_place, (batch,), tenth * steps // 10, (tenth + 1) * steps // 10 + 1)
        for key_place, tenth in zip(key_places, (1, 4), strict=True)
    )
    t = jnp.arange(steps)[:, None]
    symbols = jnp.where(t == place, first, jnp.where(t == later, second, distractors))
    return jax.nn.one_hot(symbols, SYMBOLS), jnp.broadcast_to(2 * first + second, (steps, batch))


def train(kind: Kind, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share of sequences told wrongly by one network, and the largest norm of its gradients."""
    key_init, key_train, key_test = jax.random.split(key, 3)
    cell = jb.cells.elman(SYMBOLS, HIDDEN, CLASSES, bias=True, output_bias=True)
    clip = optax.clip_by_global_norm(THRESHOLD) if kind.clipped else optax.identity()
    optimizer = optax.chain(clip, optax.sgd(kind.rate))
    gradient = jb.bptt(cell, jb.losses.softmax_cross_entropy, reduction="mean")
    update, at_end = jb.training.train_step(gradient, optimizer), jnp.arange(kind.steps) == kind.steps - 1

    def one(train_state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        train_state = train_state._replace(carry=cell.initial_state(B))
        train_state, metrics = update(train_state, *sequences(key, kind.steps, B), mask=at_end)
        return train_state, metrics.gradient_norm

    begin = jb.training.init(cell.init(key_init), optimizer, cell.initial_state(B))
    train_state, norms = jax.lax.scan(one, begin, jax.random.split(key_train, UPDATES))
    xs, classes = sequences(key_test, kind.steps, HELD_OUT)
    _, outputs = jb.unroll(cell, train_state.params, cell.initial_state(HELD_OUT), xs)
    return (outputs[-1].argmax(axis=-1) != classes[-1]).mean(), norms.max()


def draw(wrong: Mapping[Kind, np.ndarray]) -> Figure:
    """What each network tells wrongly, by length, with a panel for each rate."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for ax, rate in zip(figure.subplots(1, len(RATES), sharey=True), RATES, strict=True):
        for clipped, color, label in ((False, plots.ORANGE, "not clipped"), (True, plots.BLUE, "clipped")):
            found = [100 * wrong[Kind(steps, rate, clipped)] for steps in LENGTHS]
            ax.plot(LENGTHS, [np.median(shares) for shares in found], color=color, linewidth=1.8, label=label)
            for steps, shares in zip(LENGTHS, found, strict=True):
                ax.plot([steps] * SEEDS, shares, "o", color=color, alpha=0.5, clip_on=False)
        ax.axhline(75, color=plots.GREY, linestyle=":", linewidth=1.2, label="guessing")
        ax.set(
            xlabel="length T (steps)", ylabel="told wrongly (%)", title=f"rate {rate}", xticks=LENGTHS, ylim=(0, 100)
        )
        ax.spines[["top", "right"]].set_visible(False)
        ax.label_outer()
        ax.legend(frameon=False, fontsize="small", loc="upper left")
    return figure
