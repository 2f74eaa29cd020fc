import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.command.gradient_check import compare_gradients, distance, relative_difference


def test_comparison_tells_difference_time_and_memory():
    x = np.random.default_rng(0).normal(size=(200, 200))

    def slow(x):
        return None, {"product": jax.lax.fori_loop(0, 300, lambda i, y: jnp.tanh(x @ y), x), "same": x}

    def fast(x):
        return None, {"product": slow(x)[1]["product"] * 1.001, "same": x + 0}

    def cheap(x):
        return None, {"product": 2 * x, "same": x}

    comparison = compare_gradients(slow, fast, x, repeats=3)
    assert comparison.differences["product"] == pytest.approx(0.001 / 1.001)
    assert comparison.differences["same"] == 0
    comparison = compare_gradients(slow, cheap, x, repeats=3)
    assert comparison.cost.seconds > comparison.other.seconds > 0
    assert comparison.cost.temporary_bytes > comparison.other.temporary_bytes >= 0


def test_relative_difference_of_zeros_and_to_zero():
    assert relative_difference(np.zeros(3), np.zeros(3)) == 0
    assert relative_difference(np.asarray([1.0, 2]), np.asarray([1.0, 4])) == 0.5


def test_distance_of_orthogonal_gradients_and_to_itself():
    def along(scale, axis):
        return lambda x: (None, {"a": scale * x * (axis == 0), "b": scale * x * (axis == 1)})

    assert distance(along(3, 0), along(1, 1), jnp.ones(4)) == pytest.approx((0, 3, 10**0.5))
    assert distance(along(2, 0), along(2, 0), jnp.ones(4)) == pytest.approx((1, 1, 0))
