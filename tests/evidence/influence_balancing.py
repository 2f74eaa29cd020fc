"""Influence balancing: a horizon that is too short by one pushes the wrong way.

    x_t = A x_{t−1} + θ s,    ℓ_t = ½ (x_t¹ − 1)²        n = 23

A has ½ on its diagonal and above it, s is +1 ten times and then −1 thirteen times. What θ does to the first state
arrives from the others, one after the other, the wrong sign first: d x¹/dθ is −6, but every truncated gradient up to
K = 40 steps is positive, and training with it runs away. Truncation without bias is right on average.

Source: C. Tallec and Y. Ollivier, "Unbiasing truncated backpropagation through time", 2017, section 5.1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jax_bptt as jb
from jax_bptt import plots
from tests.evidence import page
from tests.evidence.page import Result, Tell

POSITIVE, NEGATIVE = 10, 13
N = POSITIVE + NEGATIVE
EXACT = -6.0
TRUNCATED = {1: 1.0, 10: 10.0, 20: 16.476, 30: 9.870, 40: 0.566, 41: -0.219, 100: -6.0}
"""d x¹/dθ, by horizon."""
ENDS = {41: 0.28284, 45: -0.162454, 100: -0.166653}
"""θ after 3,000 updates, by steps of an update."""
LAST_DIGIT = {41: 6e-6, 45: 6e-7, 100: 6e-7}
"""To which these are known."""
UPDATES, RATE, BEGIN = 3_000, 1e-4, 0.5
STEPS = 200
"""After which no influence is left."""
K1, CUT, KEYS = 10, 0.1, 20_000

A = (np.eye(N) + np.eye(N, k=1)) / 2
s = np.repeat([1.0, -1.0], [POSITIVE, NEGATIVE])


def step(theta: jax.Array, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    x = A @ x + theta * s
    return x, x[0]


def last_of(steps: int) -> np.ndarray:
    """The mask of the last loss."""
    return np.arange(steps) == steps - 1


def influences(horizons: list[int]) -> dict[int, float]:
    """d x¹/dθ, truncated."""

    def of(K: int) -> float:
        gradient = jax.jit(jb.truncated_bptt(step, lambda y, _: y, 1, K), static_argnames="length")
        return float(gradient(jnp.asarray(BEGIN), jnp.ones((1, N)), mask=last_of(STEPS), length=STEPS)[1])

    return {K: of(K) for K in horizons}


def without_bias() -> np.ndarray:
    """The same by truncation at random, of many keys."""
    gradient = jb.artbp(step, lambda y, _: y, K1, CUT)
    of = functools.partial(gradient, jnp.asarray(BEGIN), jnp.ones((1, N)), mask=last_of(STEPS), length=STEPS)
    return np.asarray(jax.jit(jax.vmap(lambda key: of(key=key)[1]))(jax.random.split(jax.random.key(0), KEYS)))


def train(K: int) -> np.ndarray:
    """θ over the updates, each by K steps and the loss of the last one, the state carried on."""
    optimizer = optax.sgd(RATE)
    update = jb.training.train_step(jb.bptt(step, jb.losses.squared_error), optimizer)
    begin = jb.training.init(jnp.asarray(BEGIN), optimizer, jnp.ones((1, N)))

    def one(train_state: jb.training.TrainState, _: None) -> tuple[jb.training.TrainState, jax.Array]:
        after, _ = update(train_state, None, jnp.ones((K, 1)), mask=last_of(K))
        return after, after.params

    return np.asarray(jax.jit(lambda begin: jax.lax.scan(one, begin, length=UPDATES)[1])(begin))


def run(tell: Tell) -> Result:
    with page.in_double_precision():
        by_horizon = influences(sorted({*range(5, 60, 5), *TRUNCATED}))
        tell(f"influences of {len(by_horizon)} horizons")
        estimates = without_bias()
        mean, error = estimates.mean(), estimates.std() / np.sqrt(KEYS)
        tell(f"mean of {KEYS} estimates without bias: {mean:.3f} ± {error:.3f}")
        thetas = {K: train(K) for K in ENDS}
        tell("trained with " + ", ".join(f"K = {K}: θ = {of[-1]:.6f}" for K, of in thetas.items()))
    claims = {
        f"d x¹/dθ truncated after K = {K} steps: {by_horizon[K]:+.3f}": abs(by_horizon[K] - of) < 5.1e-4
        for K, of in TRUNCATED.items()
    }
    claims[f"the mean of {KEYS:,} estimates by ARTBP, k1 = {K1}, cut {CUT:g}: {mean:.3f} ± {error:.3f}"] = (
        abs(mean - EXACT) < 5 * error < 1
    )
    claims |= {
        f"θ after {UPDATES:,} updates by K = {K} steps: {thetas[K][-1]:.6f}": abs(thetas[K][-1] - of) < LAST_DIGIT[K]
        for K, of in ENDS.items()
    }
    rows = [("K", "d x¹/dθ", f"θ after {UPDATES:,} updates (best: −1/6)")]
    rows += [
        (str(K), f"{by_horizon[K]:+.3f}", f"{thetas[K][-1]:.6f}" if K in thetas else "")
        for K in sorted({*TRUNCATED, *ENDS})
    ]
    return Result(rows, draw(by_horizon, estimates.mean(), thetas), claims)


def draw(by_horizon: dict[int, float], mean: float, thetas: dict[int, np.ndarray]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = [K for K in by_horizon if K < 60]
    told = [by_horizon[K] for K in known]
    left.plot(known, told, color=plots.BLUE, linewidth=1.8, marker="o", markersize=4, label="truncated")
    left.axhline(EXACT, color="black", linewidth=1.2, label="exact")
    left.axhline(mean, color=plots.ORANGE, linestyle="--", linewidth=1.8, label="mean of ARTBP")
    left.axhline(0, color=plots.GREY, linestyle=":", linewidth=1)
    left.set(xlabel="horizon K (steps)", ylabel="d x¹/dθ", title="Influence of θ")
    for i, (K, of) in enumerate(thetas.items()):
        right.plot(of, color=plots.COLORS[i], linewidth=1.8, label=f"K = {K}")
    right.axhline(-1 / 6, color="black", linewidth=1.2, linestyle=":", label="best")
    right.set(xlabel="update", ylabel="θ", title="Training, K steps an update")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small")
    return figure
