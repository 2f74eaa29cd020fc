import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jax_bptt as jb

I, H, O = 3, 5, 2


@pytest.mark.parametrize(
    ("make", "oracle"),
    [(jb.cells.gru, oracles.gru()), (jb.cells.lstm, oracles.lstm()), (jb.cells.elman, oracles.elman())],
)
def test_outputs_equal_the_equations(make, oracle):
    """Those of GRU and LSTM are PyTorch's: the oracles transcribe its documentation."""
    cell = make(I, H, O, output_bias=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), cell.init(jax.random.key(0)))
    state = jax.tree.map(lambda s: rng.normal(size=s.shape), cell.initial_state(4))
    xs = rng.normal(size=(6, 4, I))
    want_state = state
    for x in xs:
        state, output = jax.vmap(cell.step, in_axes=(None, 0, 0))(params, state, x)
        want_state, want_output, _ = oracle.forward(params, want_state, x)
        np.testing.assert_allclose(output, want_output, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), state, want_state)


def test_params_are_those_that_are_asked_for():
    shapes = {
        name: jax.tree.map(jnp.shape, cell.init(jax.random.key(0)))
        for name, cell in {
            "elman": jb.cells.elman(I, H, O),
            "elman biased": jb.cells.elman(I, H, O, bias=True, output_bias=True),
            "gru": jb.cells.gru(I, H, O),
            "lstm": jb.cells.lstm(I, H, O),
            "lstm bare": jb.cells.lstm(I, H, None, bias=False),
        }.items()
    }
    elman = {"A": (H, H), "B": (H, I), "C": (O, H)}
    assert shapes == {
        "elman": elman,
        "elman biased": elman | {"b": (H,), "c": (O,)},
        "gru": {"W_ih": (3 * H, I), "W_hh": (3 * H, H), "b_ih": (3 * H,), "b_hh": (3 * H,), "C": (O, H)},
        "lstm": {"W_ih": (4 * H, I), "W_hh": (4 * H, H), "b_ih": (4 * H,), "b_hh": (4 * H,), "C": (O, H)},
        "lstm bare": {"W_ih": (4 * H, I), "W_hh": (4 * H, H)},
    }


def test_recurrent_weights_of_each_gate_are_orthogonal():
    for cell, gates in ((jb.cells.gru(I, H, O), 3), (jb.cells.lstm(I, H, O), 4)):
        for W in np.split(np.asarray(cell.init(jax.random.key(0))["W_hh"]), gates):
            np.testing.assert_allclose(W @ W.T, np.eye(H), atol=1e-6)
    A = np.asarray(jb.cells.elman(I, H, O).init(jax.random.key(0))["A"])
    np.testing.assert_allclose(A @ A.T, np.eye(H), atol=1e-6)


def test_forget_gate_alone_begins_open():
    params = jb.cells.lstm(I, H, O).init(jax.random.key(0))
    np.testing.assert_array_equal(params["b_ih"] + params["b_hh"], np.repeat([0.0, 1, 0, 0], H))
    params = jb.cells.lstm(I, H, O, forget_bias=0.0).init(jax.random.key(0))
    np.testing.assert_array_equal(params["b_ih"] + params["b_hh"], 0)


def test_input_weights_have_the_variance_of_glorot_and_bengio():
    B = np.asarray(jb.cells.elman(300, 100, O).init(jax.random.key(0))["B"])
    np.testing.assert_allclose(B.var(), 2 / (300 + 100), rtol=0.05)


def test_initialisers_and_dtype_can_be_chosen():
    cell = jb.cells.elman(
        I, H, O, recurrent_init=lambda key, shape, dtype: 0.5 * jnp.eye(*shape, dtype=dtype), dtype=jnp.bfloat16
    )
    params, state = cell.init(jax.random.key(0)), cell.initial_state(2)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(params["A"].astype(float), 0.5 * np.eye(H))


def test_init_depends_on_the_key_alone():
    cell = jb.cells.lstm(I, H, O)
    first, again, other = (cell.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["W_hh"] != other["W_hh"]).any()


def test_a_stack_feeds_outputs_on():
    layers = [jb.cells.gru(I, H, None), jb.cells.elman(H, 4, O)]
    cell = jb.cells.stack(layers)
    params, state = cell.init(jax.random.key(0)), cell.initial_state(2)
    x = np.random.default_rng(0).normal(size=(2, I))
    (lower, upper), output = jax.vmap(cell.step, in_axes=(None, 0, 0))(params, state, x)
    want_lower, between = jax.vmap(layers[0].step, in_axes=(None, 0, 0))(params[0], state[0], x)
    want_upper, want = jax.vmap(layers[1].step, in_axes=(None, 0, 0))(params[1], state[1], between)
    np.testing.assert_array_equal(lower, want_lower)
    np.testing.assert_array_equal(upper, want_upper)
    np.testing.assert_array_equal(output, want)


@pytest.mark.parametrize("make", [jb.cells.elman, jb.cells.gru, jb.cells.lstm])
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="hidden: found 0, expected at least 1"):
        make(I, 0, O)
    with pytest.raises(TypeError, match=r"inputs: found 3\.5 of type float, expected a positive integer"):
        make(3.5, H, O)
    with pytest.raises(ValueError, match="outputs: found -1, expected at least 1"):
        make(I, H, -1)


def test_stack_checks_its_layers():
    with pytest.raises(ValueError, match="cells: found an empty sequence, expected at least one Cell"):
        jb.cells.stack([])
    with pytest.raises(TypeError, match=r"cells: found .*, expected a sequence of Cells"):
        jb.cells.stack([jb.cells.gru(I, H, O), lambda params, state, x: (state, x)])
    with pytest.raises(TypeError, match=r"cells: found .*, expected a sequence of Cells"):
        jb.cells.stack(jb.cells.gru(I, H, O))
