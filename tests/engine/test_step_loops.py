"""What the design promises of the compiled program, read in its jaxpr: nothing is in the step loops that could be out.

Sizes are distinct primes, so that a shape tells what an array is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

import jax_bptt as jb

T, W, B, I, H, O = 51, 17, 5, 7, 11, 13


def plain_step(params, h, x):
    h = jnp.tanh(params["A"] @ h + params["B"] @ x)
    return h, params["C"] @ h


def row_vector_step(params, h, x):
    h = jnp.tanh(h @ params["A"].T + x @ params["B"].T)
    return h, h @ params["C"].T


CELLS = {"elman": jb.cells.elman(I, H, O), "gru": jb.cells.gru(I, H, O), "lstm": jb.cells.lstm(I, H, O)}
MODELS = CELLS | {
    "plain": CELLS["elman"]._replace(step=plain_step),
    "rows": CELLS["elman"]._replace(step=row_vector_step),
}


def step_loops(make, cell, **options):
    """The loops over single time steps in the gradient's jaxpr."""
    params = cell.init(jax.random.key(0))
    args = params, cell.initial_state(B), np.zeros((T, B, I)), np.zeros((T, B, O))
    jaxpr = jax.make_jaxpr(make(cell, jb.losses.squared_error, **options))(*args).jaxpr
    return [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] in (W, T)]


def weights_carried(loop, params):
    """Shapes of weights, or of their transposes, among what a loop carries or stacks."""
    shapes = {shape for p in jax.tree.leaves(params) if p.ndim == 2 for shape in (p.shape, p.shape[::-1])}
    return [v.aval.shape for v in loop.outvars if v.aval.shape[-2:] in shapes]


def products(loop):
    return [eqn for eqn in equations(loop.params["jaxpr"].jaxpr) if eqn.primitive.name == "dot_general"]


def sizes(eqn):
    return {size for v in (*eqn.invars, *eqn.outvars) for size in v.aval.shape}


@pytest.mark.parametrize(("save", "loops"), [("dots", 2), ("states", 2), ("boundaries", 3)])
@pytest.mark.parametrize("name", MODELS)
def test_step_loops_hold_the_recurrence_alone(name, save, loops):
    cell = MODELS[name]
    found = step_loops(jb.bptt, cell, window=W, save=save, argnums=(0, 1, 2))
    assert len(found) == loops
    for loop in found:
        assert weights_carried(loop, cell.init(jax.random.key(0))) == []
        assert len(products(loop)) == 1  # with the recurrent weights
        assert not {I, O} & sizes(products(loop)[0])
        gates = {"gru": 3, "lstm": 4}.get(name, 1)
        assert sizes(products(loop)[0]) <= {B, H, gates * H}


@pytest.mark.parametrize(
    ("name", "save", "arrays"),
    [
        ("elman", "dots", 1),
        ("gru", "dots", 5),
        ("lstm", "dots", 5),  # the gates and c; h follows from them
        ("lstm", "states", 2),
        ("lstm", "boundaries", 0),
    ],
)
def test_what_is_saved_of_a_step_is_written_in_its_place_and_is_little(name, save, arrays):
    forward = step_loops(jb.bptt, CELLS[name], window=W, save=save)[0]
    of_loop, of_step = ([v.aval.shape for v in of.outvars] for of in (forward, forward.params["jaxpr"].jaxpr))
    assert of_loop == of_step  # nothing is stacked: all is carried
    assert sum(np.prod(shape) for shape in of_loop if shape[:2] == (T, B)) == arrays * T * B * H


@pytest.mark.parametrize("windows", [(W, W), (W, 3 * W), (W, 2 * W + 3)])
@pytest.mark.parametrize("name", MODELS)
def test_step_loops_of_truncation_hold_the_recurrence_alone(name, windows):
    cell = MODELS[name]

    def make(cell, loss):
        return jb.truncated_bptt(cell, loss, *windows, parallel=2, argnums=(0, 1, 2))

    found = step_loops(make, cell)
    assert len(found) >= 2
    for loop in found:
        assert weights_carried(loop, cell.init(jax.random.key(0))) == []
        assert len(products(loop)) == 1
        assert not {I, O} & sizes(products(loop)[0])


@pytest.mark.parametrize("name", MODELS)
def test_the_same_reading_finds_all_of_it_in_jax_grad(name):
    cell = MODELS[name]
    forward, backward = step_loops(jb.reference.bptt, cell)
    assert weights_carried(backward, cell.init(jax.random.key(0)))
    assert any({I, O} & sizes(product) for loop in (forward, backward) for product in products(loop))


M, P = 19, 23


def partly_learnt(params, state, x):
    """m is only looked at, and the phase depends on nothing that is trained."""
    h, m, phase = state
    h = jnp.tanh(params["A"] @ h + params["B"] @ x + phase.mean())
    return (h, jnp.tanh(params["M"] @ m + h.sum()), 0.9 * phase + 0.1), params["C"] @ h


def loss_by_scan(params, state, xs, ys):
    def body(state, x):
        state, y = jax.vmap(partly_learnt, (None, 0, 0))(params, state, x)
        return state, (y, state[1])

    _, (outputs, looked_at) = jb.scan(body, state, xs, window=W)
    return ((outputs - ys) ** 2).sum() / 2, looked_at.sum()


PARTLY_LEARNT = {
    "exact": (jb.bptt(partly_learnt, jb.losses.squared_error, window=W), jb.reference.bptt),
    "windows": (
        jb.truncated_bptt(partly_learnt, jb.losses.squared_error, W, 2 * W),
        lambda *of: jb.reference.truncated_bptt(*of, W, 2 * W),
    ),
    "scan": (jax.value_and_grad(loss_by_scan, has_aux=True), jb.reference.bptt),
}


def partly_learnt_arguments():
    shapes = {"A": (H, H), "B": (H, I), "C": (O, H), "M": (M, M)}
    normal = np.random.default_rng(0).normal
    params = {name: jnp.asarray(normal(size=shape)) / 4 for name, shape in shapes.items()}
    state = tuple(jnp.asarray(normal(size=(B, size))) for size in (H, M, P))
    return params, state, jnp.asarray(normal(size=(T, B, I))), jnp.asarray(normal(size=(T, B, O)))


@pytest.mark.parametrize("name", PARTLY_LEARNT)
def test_leaves_that_credit_does_not_pass_are_not_in_the_reverse_loop(name):
    gradient, reference = PARTLY_LEARNT[name]
    args = partly_learnt_arguments()
    jaxpr = jax.make_jaxpr(gradient)(*args).jaxpr
    forward, *reverse = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] == W]
    read = [{size for eqn in loop.params["jaxpr"].jaxpr.eqns for size in sizes(eqn)} for loop in (forward, *reverse)]
    assert read[0] >= {M, P}
    assert reverse
    assert all(not {M, P} & of_loop for of_loop in read[1:])

    got, want = gradient(*args)[1], reference(partly_learnt, jb.losses.squared_error)(*args)[1]
    for leaf, like in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(leaf, like, rtol=1e-10, atol=1e-12)


def test_where_no_credit_is_handed_on_there_is_no_reverse_loop():
    """The params of the readout alone are trained."""
    params, *args = partly_learnt_arguments()

    def loss(C, A):
        return loss_by_scan(params | {"A": A, "C": C}, *args)[0]

    def loops(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(params["C"], params["A"]).jaxpr
        return [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] == W]

    assert len(loops(0)) == 1
    assert len(loops(1)) == 2
