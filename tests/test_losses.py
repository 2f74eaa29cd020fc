import jax
import numpy as np
import oracles
import pytest

import jax_bptt as jb


def test_squared_error_equals_the_formula_and_its_gradient():
    rng = np.random.default_rng(0)
    y, target = rng.normal(size=(2, 5))
    value, gradient = jax.value_and_grad(jb.losses.squared_error)(y, target)
    want, want_gradient = oracles.squared_error(y, target)
    np.testing.assert_allclose(value, want, rtol=1e-14)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-14)


def test_softmax_cross_entropy_equals_the_formula_and_its_gradient():
    logits = np.random.default_rng(0).normal(size=5)
    for label in range(5):
        value, gradient = jax.value_and_grad(jb.losses.softmax_cross_entropy)(logits, label)
        want, want_gradient = oracles.softmax_cross_entropy(logits, label)
        np.testing.assert_allclose(value, want, rtol=1e-13)
        np.testing.assert_allclose(gradient, want_gradient, rtol=1e-12)


def test_several_labels_a_step_are_summed():
    logits = np.random.default_rng(0).normal(size=(3, 5))
    labels = np.asarray([0, 4, 2])
    want = sum(jb.losses.softmax_cross_entropy(*pair) for pair in zip(logits, labels, strict=True))
    np.testing.assert_allclose(jb.losses.softmax_cross_entropy(logits, labels), want, rtol=1e-14)


def test_bad_targets_are_named():
    with pytest.raises(ValueError, match=r"target: found shape \(3,\), expected that of the output, \(2,\)"):
        jb.losses.squared_error(np.zeros(2), np.zeros(3))
    with pytest.raises(TypeError, match="target: found dtype float64, expected integer labels"):
        jb.losses.softmax_cross_entropy(np.zeros(2), np.zeros(()))
    with pytest.raises(ValueError, match=r"target: found labels of shape \(2,\) for an output of shape \(2,\)"):
        jb.losses.softmax_cross_entropy(np.zeros(2), np.zeros(2, int))


def test_targets_that_were_forgotten_are_named():
    with pytest.raises(TypeError, match=r"target: found None, expected an array of shape \(\), as the output"):
        jb.losses.squared_error(1.0, None)
    with pytest.raises(TypeError, match="target: found None, expected integer labels"):
        jb.losses.softmax_cross_entropy(np.zeros(2), None)
