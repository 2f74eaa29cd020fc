"""What is told of a step is what its parts are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb

T, B, I, H, O = 5, 2, 3, 4, 2
ONCE, BEFORE, FORWARD, READOUT, BETWEEN, REVERSE = range(6)


def explained(model, state, xs, params=None):
    params = model.init(jax.random.key(0)) if params is None else params
    return jb.diagnostics.explain(model, params, state, xs)


def rooms(placement):
    return [" ".join(found) for found in placement.rooms.values()]


def test_products_are_told_where_they_run():
    cell = jb.cells.elman(I, H, O, dtype=jnp.float32)
    placement = explained(cell, cell.initial_state(B), np.zeros((T, B, I), "float32"))
    found = rooms(placement)
    assert f"dot_general of [{I}], [{H}, {I}] → [{H}]" in found[BEFORE]
    assert f"dot_general of [{H}], [{O}, {H}] → [{O}]" in found[READOUT]
    for loop in (FORWARD, REVERSE):
        assert found[loop].count("dot_general") == 1
        assert f"[{H}], [{H}, {H}] → [{H}]" in found[loop]
    assert "tanh" in found[FORWARD]
    assert "dot_general" not in found[ONCE] + found[BETWEEN]
    assert placement.saved_bytes == {"dots": 4 * H, "states": 4 * H, "boundaries": 0}
    assert placement.jacobian == {"state": "through products, or other operations that are not elementwise"}


def test_an_elementwise_jacobian_is_told_leaf_by_leaf():
    def step(params, state, x):
        kept = jax.nn.sigmoid(params["a"]) * state["kept"] + x
        mixed = jnp.tanh(params["A"] @ state["mixed"]) + kept
        adaptive = state["adaptive"] - 0.5 * kept + 0.1 * state["kept"]
        return {"adaptive": adaptive, "count": state["count"] + 1, "kept": kept, "mixed": mixed}, mixed

    state = {"count": np.zeros(B, int)} | {name: np.zeros((B, H)) for name in ("adaptive", "kept", "mixed")}
    params = {"A": np.ones((H, H)), "a": np.zeros(H)}
    told = explained(step, state, np.zeros((T, B, H)), params).jacobian
    assert told["state['adaptive']"] == "elementwise, of δ of state['adaptive']"
    assert told["state['count']"] == "nothing reaches it"
    assert told["state['mixed']"].startswith("through products")
    of_kept = set(told["state['kept']"].removeprefix("elementwise, of δ of ").split(", "))
    assert of_kept == {"state['adaptive']", "state['kept']", "state['mixed']"}


def test_what_is_saved_is_what_the_gradient_saves():
    cell = jb.cells.lstm(I, 128, O, dtype=jnp.float32)
    placement = explained(cell, cell.initial_state(16), np.zeros((T, 16, I), "float32"))
    assert placement.save == "dots"
    assert placement.saved_bytes == {"dots": 4 * 5 * 128, "states": 4 * 2 * 128, "boundaries": 0}


def test_it_is_printed_with_every_room():
    cell = jb.cells.gru(I, H, O)
    placement = explained(cell, cell.initial_state(B), np.zeros((T, B, I)))
    lines = str(placement).splitlines()
    assert [line for line in lines if not line.startswith(" ")][: len(placement.rooms)] == list(placement.rooms)
    assert "    state: through products, or other operations that are not elementwise" in lines
    assert lines[-1] == "    states and δ in loops over time"
    assert any(repr(placement.save) in line for line in lines)


def test_bad_arguments_are_named():
    cell = jb.cells.elman(I, H, O)
    with pytest.raises(ValueError, match="state: found a batch of 3"):
        explained(cell, np.zeros((3, H)), np.zeros((T, B, I)))
    with pytest.raises(TypeError, match="model: found int"):
        explained(3, np.zeros((B, H)), np.zeros((T, B, I)), {})


def test_what_is_solved_at_once_is_told():
    def told(step, params, steps=100):
        return str(jb.diagnostics.explain(step, params, np.ones((2, 8)), np.ones((steps, 2, 8)))).splitlines()[-2:]

    def gated(params, h, x):
        h = jax.nn.sigmoid(params["gate"] @ x) * h + params["in"] @ x
        return h, h

    def bent(params, h, x):
        h = jnp.tanh(params["gate"][0] * h + params["in"] @ x)
        return h, h

    title, params = "on a GPU, by default", {"gate": np.ones((8, 8)), "in": np.ones((8, 8))}
    assert told(gated, params) == [title, "    states and δ solved for all steps at once"]
    assert told(bent, params) == [title, "    δ, not the states, solved for all steps at once"]
    assert told(gated, params, steps=40) == [title, "    states and δ in loops over time"]
