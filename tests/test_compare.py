import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.compare import compare, relative_difference


def test_compare_tells_difference_time_and_memory():
    x = np.random.default_rng(0).normal(size=(200, 200))

    def slow(x):
        return {"product": jax.lax.fori_loop(0, 300, lambda i, y: jnp.tanh(x @ y), x), "same": x}

    def fast(x):
        return {"product": slow(x)["product"] * 1.001, "same": x + 0}

    def cheap(x):
        return {"product": 2 * x, "same": x}

    comparison = compare(slow, fast, x, repeats=3)
    assert comparison.differences["product"] == pytest.approx(0.001 / 1.001)
    assert comparison.differences["same"] == 0
    comparison = compare(slow, cheap, x, repeats=3)
    assert comparison.cost.seconds > comparison.other.seconds > 0
    assert comparison.cost.temporary_bytes > comparison.other.temporary_bytes >= 0


def test_relative_difference_of_zeros_and_to_zero():
    assert relative_difference(np.zeros(3), np.zeros(3)) == 0
    assert relative_difference(np.asarray([1.0, 2]), np.asarray([1.0, 4])) == 0.5
