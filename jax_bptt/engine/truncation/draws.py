"""What truncation without bias draws: where the credit of each example is cut, and how far one gradient goes back.

A gate is what δ is multiplied by as it is handed back: 1/(1 − cut) with probability 1 − cut, else 0, and 1 on average.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.call import Call, arrays_of
from jax_bptt.engine.leaves import accumulator, axes_of, vary


def boundaries(steps: int, k1: int, burn_in: int) -> range:
    """The steps before which a window of k1 steps ends and another begins, counted from the end of the burn-in."""
    return range(burn_in + k1, steps, k1)


def draw_gates(key: jax.Array, cut: Sequence[float], call: Call, k1: int, burn_in: int) -> jax.Array:
    """The gates of all steps of a call, `[T, B]`: those at boundaries drawn, all others 1.

    They are drawn for the whole batch, and are the same where that is divided among devices.

    Args:
        cut: the probability of a cut at each of the boundaries.
    """
    given, (batch,) = arrays_of(call)[0] | {"params": None}, call.batch
    data, dtype, at = axes_of(given), accumulator(call.loss_dtype), np.asarray(boundaries(call.steps, k1, burn_in), int)
    handed = jnp.asarray(1 - np.asarray(cut, np.float64), dtype)
    axes = tuple(sorted(data))
    everyone = batch * jax.lax.psum(1, axes) if axes else batch
    drawn = jax.random.bernoulli(key, jnp.broadcast_to(handed[:, None], (len(at), everyone)))
    if axes:
        drawn = jax.lax.dynamic_slice_in_dim(drawn, batch * jax.lax.axis_index(axes), batch, axis=1)
    gates = jnp.where(drawn, (1 / handed)[:, None], jnp.zeros((), dtype))
    return vary(jnp.ones((call.steps, batch), dtype), data).at[at].set(gates)


def draw_horizon(key: jax.Array, probabilities: Sequence[float], call: Call) -> tuple[jax.Array, jax.Array]:
    """Which of the horizons, and one over its probability."""
    shares = jnp.asarray(probabilities, accumulator(call.loss_dtype))
    drawn = jax.random.choice(key, len(probabilities), p=shares)
    return drawn, 1 / shares[drawn]
