"""Products are rewritten as JAX means them, and left alone where they say more than is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.engine.step.graph import extract, retrace, trace
from jax_bptt.engine.step.products import contracted_axes, rows_first

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
