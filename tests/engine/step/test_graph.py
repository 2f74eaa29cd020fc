"""Graphs are read as JAX means them."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.step.graph import dependence, extract, first_index, interpret, trace, without_repeats

rng = np.random.default_rng(0)
MATRIX, VECTOR = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=3))


def evaluated(graph, *values):
    return extract(graph, graph.inputs, graph.outputs)(*values)


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
