import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import primitives
from steps import normal

from jax_bptt.engine.step import graph
from jax_bptt.engine.step.equations import Var
from jax_bptt.engine.step.layout import transpose_late
from jax_bptt.engine.step.split import split_step

COLUMNS, CUBE, MATRIX = normal(1, 4, 6), normal(2, 2, 4, 6), normal(3, 5, 4)

# Functions that turn what they are given, do something to it, and turn what they return back.
UNDONE = {
    "elementwise": lambda a: jnp.tanh(2.0 * a.T + 1.0).T,
    "of two that are turned": lambda a: (a.T * jnp.sin(a.T)).T,
    "split": lambda a: sum(jnp.split(a.T, 2, axis=1)).T,
    "slice": lambda a: (a.T[1:5:2, 2:] * 2.0).T,
    "concatenate": lambda a: jnp.concatenate([a.T, jnp.exp(a.T)], axis=0).T,
    "sum": lambda a: a.T.sum(0),
    "largest": lambda a: a.T.max(1),
    "place of the largest": lambda a: jnp.argmax(a.T, axis=1),
    "sums so far": lambda a: jnp.cumsum(a.T, axis=0).T,
    "product": lambda a: MATRIX @ a.T.T,
    "product with what is turned": lambda a: jnp.tanh(a.T) @ MATRIX.T,
}


def of(function, *arguments):
    """A function's graph, before and after; evaluated, both agree."""
    whole = graph.trace(function, *arguments)
    late = transpose_late(whole, lambda atom: not isinstance(atom, Var))
    expected = jax.tree.leaves(function(*arguments))
    got = graph.extract(late, late.inputs, late.outputs)(*arguments)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-15, atol=1e-15)
    return whole, late


def transposes(of_what):
    return sum(eqn.primitive.name == "transpose" for eqn in of_what.equations)


@pytest.mark.parametrize("name", UNDONE)
def test_transposes_that_undo_each_other_are_left_out(name):
    whole, late = of(UNDONE[name], COLUMNS)
    assert transposes(late) == 0 < transposes(whole)


@pytest.mark.parametrize(
    "function",
    [lambda a: (a.T + jnp.broadcast_to(jnp.arange(4.0)[None], (6, 4))).T, lambda a: jnp.where(a.T > 0, a.T, -1.0).T],
    ids=["add", "select"],
)
def test_what_is_broadcast_is_turned_in_the_place_of_what_it_meets(function):
    _, late = of(function, COLUMNS)
    made_by = {v: eqn.primitive.name for eqn in late.equations for v in eqn.outvars}
    turned = [eqn.invars[0] for eqn in late.equations if eqn.primitive.name == "transpose"]
    assert turned
    assert all(made_by[v] == "broadcast_in_dim" for v in turned)


@pytest.mark.parametrize("first", [(2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("then", [(1, 2, 0), (0, 2, 1)])
def test_of_three_axes_the_value_is_the_same(first, then):
    def turned(a):
        a = jnp.transpose(a, first)
        a = jnp.concatenate([a, a[:1] * 2.0], axis=0)
        a, _ = jnp.split(a, [1], axis=2)
        product = jnp.tensordot(a, MATRIX[:1, :1], [[2], [0]])
        return jnp.transpose(jnp.sin(a), then).sum(1), jnp.cumsum(a, axis=1), product

    of(turned, CUBE)


def test_what_cannot_be_handed_on_is_turned_first():
    def turned(a):
        return jax.nn.softplus(a.T).T + jnp.sort(a.T, axis=0).T, a.T.reshape(4, 4).sum(0)

    _, late = of(turned, COLUMNS[:, :4])
    assert transposes(late) > 0


@pytest.mark.parametrize(
    "function",
    [
        lambda a: jnp.clip(a.T, -0.5, 0.5).T,
        lambda a: jax.lax.select_n(a[0, 0] > 0, a.T, 2.0 * a.T),
        lambda a: jax.lax.bitcast_convert_type(a.T, "uint8"),
        lambda a: (a[:1, :1].T * a.T[:1, :1]).T,
    ],
    ids=["bounds", "predicate", "bits", "axes of one"],
)
def test_operands_and_results_of_other_ranks(function):
    with jax.enable_checks(True):
        of(function, COLUMNS)


def test_of_what_is_made_once_transposes_stay_where_they_are():
    whole = graph.trace(lambda w, a: (jnp.tanh(a.T) @ w.T, w.T), MATRIX, COLUMNS)
    late = transpose_late(whole, lambda atom: atom is whole.inputs[0])
    assert [eqn.invars[0] for eqn in late.equations if eqn.primitive.name == "transpose"] == [late.inputs[0]] * 2


def test_what_is_returned_is_read_as_it_is_returned():
    def step(a):
        a = jnp.tanh(a.T)
        return a, jnp.cos(a) * 2.0

    _, late = of(step, COLUMNS)
    (cosine,) = [eqn for eqn in late.equations if eqn.primitive.name == "cos"]
    assert cosine.invars[0] is late.outputs[0]


def test_a_step_of_one_example_that_is_mapped_over_a_batch_turns_nothing_but_weights():
    # With weights in front, as Equinox has them: mapped, its products are columns.
    def step(params, h, x):
        update, new = jnp.split(params["A"] @ h + params["B"] @ x, 2)
        h = jax.nn.sigmoid(update) * h + (1 - jax.nn.sigmoid(update)) * jnp.tanh(new)
        return h, params["C"] @ h

    params = {"A": normal(5, 8, 4), "B": normal(6, 8, 3), "C": normal(7, 2, 4)}
    arguments = params, normal(8, 5, 4), normal(9, 5, 3)
    mapped = jax.vmap(step, (None, 0, 0))
    parts = split_step(mapped, *arguments)
    weights = parts.prepare(jax.tree.leaves(params))
    drive = parts.project(weights, [arguments[2]])
    after = parts.transition(weights, [arguments[1]], drive)
    output = parts.readout(weights, after, [arguments[2]], [arguments[1]])
    assert "transpose" in primitives(mapped, *arguments)
    for part, read in (
        (parts.project, (weights, [arguments[2]])),
        (parts.transition, (weights, [arguments[1]], drive)),
        (parts.readout, (weights, after, [arguments[2]], [arguments[1]])),
    ):
        assert "transpose" not in primitives(part, *read)
    for got, want in zip((*after, output), mapped(*arguments), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-14)
