"""Losses as they count."""

import jax
import numpy as np

import jax_bptt as jb
from jax_bptt.engine.objective import masked


def test_a_masked_loss_is_the_loss_times_the_weight():
    rng = np.random.default_rng(0)
    y, target = rng.normal(size=(2, 5))
    weighted = jax.value_and_grad(masked(jb.losses.squared_error))
    plain = jax.value_and_grad(jb.losses.squared_error)(y, target)
    for weight in (1.0, 0.3, -2.0, 0.0):
        got = weighted(y, target, weight)
        jax.tree.map(lambda g, w, weight=weight: np.testing.assert_allclose(g, weight * w, rtol=1e-14), got, plain)


def test_a_loss_of_weight_zero_does_not_show_even_if_it_is_nan():
    weighted = jax.value_and_grad(masked(jb.losses.squared_error), argnums=(0, 2))
    for y, target in ((np.zeros(2), np.full(2, np.nan)), (np.full(2, np.inf), np.zeros(2))):
        value, (to_y, _) = weighted(y, target, 0.0)
        assert value == 0
        np.testing.assert_array_equal(to_y, 0)
