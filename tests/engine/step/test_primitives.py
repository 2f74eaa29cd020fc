"""What is known of primitives, on whichever JAX has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jax_bptt.engine.step.equations import bytes_of
from jax_bptt.engine.step.graph import trace
from jax_bptt.engine.step.primitives import is_costly, operations

rng = np.random.default_rng(0)
MATRIX, VECTOR = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=3))


def test_costs():
    graph = trace(
        lambda a, v: (a @ v, jnp.sort(v), jnp.tanh(v), jnp.cumsum(v), jnp.linalg.cholesky(a.T @ a)), MATRIX, VECTOR
    )
    costly = {eqn.primitive.name: operations(eqn) for eqn in graph.equations if is_costly(eqn)}
    assert costly["sort"] == costly["cholesky"] == np.inf
    product = next(eqn for eqn in graph.equations if eqn.primitive.name == "dot_general")
    assert operations(product) == 2 * 2 * 3
    assert bytes_of(product.outvars[0]) == 16
    assert not {"tanh", "cumsum"} & costly.keys()


@pytest.mark.parametrize("wrap", [jax.checkpoint, lambda f: lambda v: jax.lax.cond(v[0] > 0, f, lambda v: v, v)])
def test_a_call_is_costly_if_something_in_it_is(wrap):
    for function, costly in ((jnp.sin, False), (lambda v: MATRIX.T @ (MATRIX @ v), True), (jnp.sort, True)):
        assert any(map(is_costly, trace(wrap(function), VECTOR).equations)) == costly


def test_what_is_not_known_is_costly():
    graph = trace(lambda v: io_callback(lambda v: v, jax.ShapeDtypeStruct((3,), v.dtype), v), VECTOR)
    assert all(map(is_costly, graph.equations))


OF_ONE = (
    *("abs", "arccos", "arcsin", "arcsinh", "arctan", "arctanh", "cbrt", "cos", "cosh", "exp", "exp2", "expm1", "log"),
    *("log10", "log1p", "log2", "reciprocal", "sign", "sin", "sinc", "sinh", "sqrt", "square", "tan", "tanh"),
)
OF_NN = (
    "celu",
    "elu",
    "gelu",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "relu6",
    "selu",
    "sigmoid",
    "softplus",
)
OF_TWO = ("add", "divide", "hypot", "logaddexp", "maximum", "multiply", "power", "subtract", "arctan2")


@pytest.mark.parametrize("name", [*OF_ONE, *OF_NN, *OF_TWO, "softmax", "where"])
def test_no_derivative_of_common_functions_is_costly(name):
    """By whatever primitives this release of JAX has for them."""
    if name == "where":
        function, number = (lambda a, b: jnp.where(a > 0, a, b)), 2
    else:
        function, number = getattr(jnp, name, None) or getattr(jax.nn, name), 1 + (name in OF_TWO)
    a = (jnp.full(3, 0.3),) * number

    def second(*a):
        return jax.jvp(lambda *a: jax.vjp(function, *a)[1](jnp.ones_like(function(*a))), a, a)

    found = trace(second, *a)
    assert found.equations
    assert [str(eqn) for eqn in found.equations if is_costly(eqn)] == []


@pytest.mark.parametrize("function", [jnp.linalg.cholesky, jnp.fft.fft, lambda a: jnp.linalg.qr(a)[0], jnp.linalg.inv])
def test_what_has_like_shapes_and_is_not_elementwise_is_costly(function):
    found = trace(function, jnp.eye(3))
    assert any(is_costly(eqn) for eqn in found.equations)
