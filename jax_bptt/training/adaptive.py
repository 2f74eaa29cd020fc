"""Adaptive truncation: the shortest horizon whose bias is small enough, as the decay of the credit tells it.

    ĝ_1 … ĝ_n, the gradients with horizons K_1 < … < K_n, of the chunk at hand
    D_i = ‖ĝ_i − ĝ_{i−1}‖          what arrives from K_{i−1} to K_i steps back, and decays

Every so many updates all of them are computed, else the one that is chosen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_bptt.checks.options import check_count, check_growing, check_tolerance, describe
from jax_bptt.checks.trees import arrays
from jax_bptt.engine.leaves import full, varying
from jax_bptt.model import GradientFunction, PyTree
from jax_bptt.training.updates import (
    Adaptive,
    Metrics,
    Online,
    TrainState,
    check_optimizer,
    check_train_state,
    init,
    train_step,
)

HALVINGS = 30
"""Of the interval in which β is looked for."""


def train_adaptively(
    gradient_of: Callable[[int], GradientFunction],
    optimizer: optax.GradientTransformation,
    horizons: Sequence[int],
    tolerance: float,
    *,
    every: int = 100,
    skip_nonfinite: bool = False,
) -> Online:
    """One update per chunk, with the shortest of several horizons whose estimated relative bias is tolerable.

        b_i = (Σ_{j>i} D_j + D_n β^b / (1 − β^b)) / ‖ĝ_n‖,    D_i = ‖ĝ_i − ĝ_{i−1}‖,    b = K_n − K_{n−1}

    ĝ_i is the gradient of the chunk at hand with horizon K_i, and D_i the norm of what arrives from K_{i−1} to K_i
    steps back. Credit is taken to decay geometrically, by β a step, beyond the longest horizon as it does among the
    last three: D_n / D_{n−1} = β^a (1 − β^b) / (1 − β^a), with a = K_{n−1} − K_{n−2}. Where it does not decay, or no
    bias is tolerable, the longest horizon is taken.

    What is measured is the credit as it arrives in the params, which is closer than the norms of ∂ℓ_s/∂h_{s−k}, on
    which `diagnostics.suggest_k2` goes. All of it is of the chunk: the bias is that beside the gradient of the chunk,
    which has nothing of the steps before it, and little of lags near its length, so that with horizons up to that all
    credit seems to decay. Let chunks be longer where longer horizons should be told of.

    Args:
        gradient_of: of a horizon a gradient function with respect to the params, such as
            `functools.partial(jb.truncated_bptt, model, loss, k1)` is, or one that makes a `data_parallel` of it.
        optimizer: of optax.
        horizons: K_1 < … < K_n, three at least.
        tolerance: the relative bias allowed, between 0 and 1.
        every: updates from one estimate to the next. An update with an estimate takes the time of n + 1 gradients.
        skip_nonfinite: as for `train_step`.

    Returns:
        A pair `init, update`, like those of optax.

        * `init(params, state)`: the `TrainState` to begin with, whose carry is an `Adaptive`; `state` is of `[B, …]`.
        * `update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`: of a chunk, as of
          `train_step`. The horizon with which it was made is `train_state.carry.horizon`, and what was estimated last
          of all of them `train_state.carry.bias`. Each gradient is compiled once.

        Pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an argument that is not of this form; when called, as the gradients do.

    Source:
        C. Aicher, N. J. Foti and E. B. Fox, "Adaptively truncating backpropagation through time to control gradient
        bias", 2019: assumption (A-1), geometric decay for large lags, and the choice of the shortest horizon. They
        bound D by norms of ∂ℓ_s/∂h_{s−k} and of the immediate partials; here it is measured.
    """
    check_optimizer(optimizer)
    steps, tolerance = check_growing(horizons, 3), check_tolerance(tolerance)
    every = check_count("every", every)
    if not callable(gradient_of):
        raise TypeError(
            f"gradient_of: found {describe(gradient_of)}, expected a function of a horizon, such as "
            "functools.partial(jax_bptt.truncated_bptt, model, loss, k1)"
        )
    gradients = [gradient_of(k2) for k2 in steps]

    def begin(
        params: PyTree, state: PyTree, xs: PyTree = None, targets: PyTree = None, key: jax.Array | None = None
    ) -> TrainState:
        if key is not None:
            raise ValueError(f"key: found {describe(key)}, expected None: nothing is drawn")
        longest = jnp.asarray(steps[-1], jnp.int32)
        unknown = jnp.full_like(jnp.zeros(len(steps)), jnp.inf)
        return init(params, optimizer, Adaptive(arrays("state", state), longest, unknown))

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        carry = train_state.carry
        if not isinstance(carry, Adaptive) or carry.bias.shape != (len(steps),):
            found = f"one of {carry.bias.size} horizons" if isinstance(carry, Adaptive) else type(carry).__name__
            raise TypeError(
                f"train_state.carry: found {found}, expected an Adaptive of {len(steps)} horizons; the init that "
                "train_adaptively returns with the update makes it"
            )
        given = {name: value for name, value in (("mask", mask), ("reset", reset)) if value is not None}

        def of_place(place: jax.Array) -> Any:
            def of(gradient: GradientFunction) -> Callable[[], Any]:
                return lambda: gradient(train_state.params, carry.state, xs, targets, **given)

            return jax.lax.switch(place, [of(gradient) for gradient in gradients])

        due = train_state.step % every == 0
        returned, grads, chosen, bias = _measured(of_place, steps, tolerance, due, carry)
        horizon = jnp.asarray(steps, jnp.int32)[chosen]
        update_once = train_step(lambda *_, **__: (returned, grads), optimizer, skip_nonfinite=skip_nonfinite)
        after, metrics = update_once(train_state._replace(carry=carry.state), xs, targets)
        return after._replace(carry=Adaptive(after.carry, horizon, bias)), metrics

    return Online(begin, update)


def _measured(
    of_place: Callable[[Any], Any], horizons: Sequence[int], tolerance: float, due: jax.Array, carry: Adaptive
) -> tuple[Any, PyTree, jax.Array, jax.Array]:
    """What the gradient with the chosen horizon returns, the gradient, which was chosen, and the bias of all.

    Args:
        of_place: the gradient with one of the horizons.
        due: whether all are to be computed first, one after the other, so that the chosen one comes last.
    """
    n, known = len(horizons), np.asarray(horizons)
    zeros = jax.tree.map(lambda leaf: full(leaf.shape, leaf.dtype, varying(leaf)), jax.eval_shape(of_place, 0))
    at_present = jnp.minimum(jnp.searchsorted(jnp.asarray(known), carry.horizon), n - 1)

    def chosen_by(bias: jax.Array) -> jax.Array:
        enough = bias <= tolerance
        return jnp.where(due, jnp.where(enough.any(), jnp.argmax(enough), n - 1), at_present)

    def one(i: jax.Array, loop: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
        (_, before), differences, norms = loop
        place = jnp.where(i < n, i, chosen_by(estimate_bias(known, differences[:n], norms[n - 1])))
        returned, grads = of_place(place)
        difference = optax.tree.norm(jax.tree.map(lambda a, b: a - b, grads, before))
        return (returned, grads), differences.at[i].set(difference), norms.at[i].set(optax.tree.norm(grads))

    blank = jnp.zeros(n + 1)
    (returned, grads), differences, norms = jax.lax.fori_loop(jnp.where(due, 0, n), n + 1, one, (zeros, blank, blank))
    bias = jnp.where(due, estimate_bias(known, differences[:n], norms[n - 1]), carry.bias)
    return returned, grads, chosen_by(bias), bias


def estimate_bias(horizons: np.ndarray, differences: jax.Array, norm: jax.Array) -> jax.Array:
    """b of each of the horizons, `[n]`, of D, `[n]`, whose first entry is not looked at, and ‖ĝ_n‖."""
    a, b = np.diff(horizons)[-2:].tolist()
    last, one_before = differences[-1], differences[-2]
    ratio = jnp.where(last == 0, 0.0, last / jnp.where(one_before > 0, one_before, 1.0))
    ratio = jnp.where((one_before == 0) & (last > 0), jnp.inf, ratio)

    def halve(_: Any, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        beta = (low + high) / 2
        is_less = beta**a * (1 - beta**b) < ratio * (1 - beta**a)
        return jnp.where(is_less, beta, low), jnp.where(is_less, high, beta)

    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(ratio), jnp.ones_like(ratio)))
    left = ((low + high) / 2) ** b
    beyond = jnp.where(ratio < b / a, last * left / jnp.maximum(1 - left, jnp.finfo(left.dtype).tiny), jnp.inf)
    beyond = jnp.where(last == 0, 0.0, beyond)
    further = jnp.append(jnp.cumsum(differences[:0:-1])[::-1], 0.0) + beyond
    return jnp.where(further == 0, 0.0, further / norm)
