"""Graphs are read and rewritten as JAX means them, and left alone where they say more than is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jax_bptt.engine.step.graph import (
    contracted_axes,
    dependence,
    extract,
    first_index,
    interpret,
    retrace,
    rows_first,
    trace,
    without_repeats,
)
from jax_bptt.engine.step.partition import derived_states

HIGHEST, DEFAULT = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
rng = np.random.default_rng(0)
MATRIX, VECTOR = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=3))


def traced(function, *arguments, transpose):
    graph = trace(function, *arguments)
    return retrace(graph, lambda eqn: rows_first(eqn, transpose_from=1)) if transpose else graph


def evaluated(graph, *values):
    return extract(graph, graph.inputs, graph.outputs)(*values)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda a, v: a @ v, (MATRIX, VECTOR)),
        (lambda a, v: v @ a.T, (MATRIX, VECTOR)),
        (lambda v, a: jax.lax.dot_general(v, a, (((0,), (1,)), ((), ()))), (VECTOR, MATRIX)),
        (lambda a, v: jnp.einsum("ijk,ik->j", a, v), (jnp.asarray(rng.normal(size=(2, 4, 3))), MATRIX)),
        (lambda a, v: jnp.einsum("ijk,ki->j", a, v), (jnp.asarray(rng.normal(size=(2, 4, 3))), MATRIX.T)),
        (lambda a, v: v @ v, (MATRIX, VECTOR)),
        (lambda a, v: jnp.outer(v, v) @ v, (MATRIX, VECTOR)),
    ],
)
def test_products_are_what_they_were(function, arguments, transpose):
    graph = traced(function, *arguments, transpose=transpose)
    np.testing.assert_allclose(evaluated(graph, *arguments)[0], function(*arguments), rtol=1e-14)
    for eqn in graph.equations:
        axes = contracted_axes(eqn)
        if axes is not None and eqn.outvars[0].aval.shape:
            assert len(axes[0]) == eqn.invars[0].aval.ndim  # the vector stands first
            assert not transpose or axes[1] == tuple(range(len(axes[1])))


@pytest.mark.parametrize("transpose", [False, True])
def test_a_pair_of_precisions_is_swapped_with_the_operands(transpose):
    def product(a, v):
        return jax.lax.dot_general(a, v, (((1,), (0,)), ((), ())), precision=(HIGHEST, DEFAULT))

    graph = traced(product, MATRIX, VECTOR, transpose=transpose)
    (eqn,) = (eqn for eqn in graph.equations if eqn.primitive.name == "dot_general")
    assert eqn.params["precision"] == (DEFAULT, HIGHEST)


def test_a_product_by_an_algorithm_is_not_rewritten():
    algorithm = jax.lax.DotAlgorithm(*[np.float32] * 3)

    def product(a, v):
        return jax.lax.dot_general(a, v, (((1,), (0,)), ((), ())), precision=algorithm)

    (eqn,) = trace(product, MATRIX.astype("float32"), VECTOR.astype("float32")).equations
    assert eqn.params["precision"] == algorithm
    assert rows_first(eqn, transpose_from=1) is None


def test_a_product_with_params_that_are_not_known_is_not_rewritten():
    graph = trace(lambda a, v: jax.lax.dot_general(v, a, (((0,), (1,)), ((), ()))), MATRIX, VECTOR)
    (eqn,) = graph.equations
    assert contracted_axes(eqn) == ((0,), (1,))
    for name in ("out_sharding", "scaled"):
        assert contracted_axes(eqn.replace(params=eqn.params | {name: "something"})) is None


def test_calls_are_inlined_whatever_they_are_named():
    inner = jax.jit(lambda a, v: jnp.tanh(a @ v))
    for function in (inner, jax.jit(inner), lambda a, v: jax.jit(inner)(a, 2 * v)):
        graph = trace(function, MATRIX, VECTOR)
        assert not {"jit", "pjit"} & {eqn.primitive.name for eqn in graph.equations}
        np.testing.assert_allclose(evaluated(graph, MATRIX, VECTOR)[0], function(MATRIX, VECTOR), rtol=1e-14)


def test_interpretation_replaces_what_it_is_told_to():
    graph = trace(lambda v: jnp.tanh(v) + jnp.sin(v) * 2, VECTOR)

    def replace(eqn, operands):
        return [operands[0]] if eqn.primitive.name == "tanh" else None

    (got,) = interpret(graph, {graph.inputs[0]: VECTOR}, graph.outputs, replace)
    np.testing.assert_allclose(got, VECTOR + 2 * jnp.sin(VECTOR), rtol=1e-14)


def test_a_leaf_of_the_state_that_a_side_effect_makes_is_not_computed_again():
    def transition(weights, before, drive):
        count = before[0] + 1
        return [count, io_callback(lambda c: c, jax.ShapeDtypeStruct((), count.dtype), count)]

    graph = trace(transition, [], [jnp.zeros(()), jnp.zeros(())], [])
    assert derived_states(graph, graph.inputs, []) == (False, False)
    pure = trace(lambda count, told: [count + 1, jnp.sin(count + 1)], jnp.zeros(()), jnp.zeros(()))
    assert derived_states(pure, pure.inputs, []) == (False, True)


def test_a_leaf_that_another_one_was_derived_from_is_saved():
    graph = trace(lambda a, b, x: [b, x], *[jnp.zeros(2)] * 3)
    a, b, x = graph.inputs
    assert derived_states(graph, [a, b], [x]) == (True, False)


def test_dependence_and_the_first_of_several_places():
    graph = trace(lambda a, v, w: (a @ v, jnp.tanh(v), w + 1, MATRIX[0]), MATRIX, VECTOR, 1.0)
    level = dependence(graph, [[graph.inputs[0]], [graph.inputs[1]], [graph.inputs[2]]])
    assert [level[v] for v in graph.outputs] == [1, 1, 2, 0]
    a, b, _ = graph.inputs
    assert first_index([[a, b], [b]], [["a", "first"], ["second"]]) == {a: "a", b: "first"}


def test_effects_are_kept_when_calls_are_inlined(capfd):
    def told(v):
        jax.jit(lambda v: jax.debug.print("seen {}", v[0]))(v)
        return MATRIX @ v

    graph = trace(told, VECTOR)
    capfd.readouterr()
    extract(graph, graph.inputs, graph.outputs)(VECTOR)
    jax.effects_barrier()
    assert capfd.readouterr().out == ""
    extract(graph, graph.inputs, graph.outputs, effects=True)(VECTOR)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == 1


def test_of_equations_that_make_the_same_only_the_first_is_left():
    def repeats(a):
        return jnp.sin(a) * jnp.cos(a) + jnp.sin(a), jnp.cos(a), jnp.split(a, 3)[1] + jnp.split(a, 3)[2]

    graph = trace(repeats, VECTOR)
    once = without_repeats(graph)
    assert sorted(eqn.primitive.name for eqn in once.equations) == ["add", "add", "cos", "mul", "sin", "split"]
    for got, want in zip(evaluated(once, VECTOR), repeats(VECTOR), strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_only_looks_the_same_is_made_each_time():
    def different(a, key):
        halves = a * 0.0, a * -0.0, a + 1, a + jnp.float32(1), jnp.sum(a), jnp.max(a)
        return *halves, jax.random.normal(key), jax.random.normal(key)

    key = jax.random.key(0, impl="rbg")
    graph = trace(different, VECTOR, key)
    once = without_repeats(graph)
    drawn = [eqn for eqn in once.equations if eqn.primitive.name == "random_bits"]
    assert len(drawn) == 2  # of keys with which a draw may be made but once
    for got, want in zip(evaluated(once, VECTOR, key), different(VECTOR, key), strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))
