"""`data_parallel`: what one device computes of the whole batch, several compute of its parts."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxprs import equations
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb

ROOT = Path(__file__).parents[1]
GRADIENTS = {
    "exact": lambda *of: jb.bptt(*of),
    "boundaries": lambda *of: jb.bptt(*of, save="boundaries"),
    "mean": lambda *of: jb.bptt(*of, reduction="mean"),
    "chunked": lambda *of: jb.truncated_bptt(*of, 4, 4),
    "overlapping": lambda *of: jb.truncated_bptt(*of, 2, 5, reduction="mean"),
    "state gradients": lambda *of: jb.state_gradients(*of),
    "all arguments": lambda *of: jb.bptt(*of, argnums=(2, 0, 1)),
    "reference": lambda *of: jb.reference.bptt(*of),
}


def more(name, state, key=0):
    """Optional arguments of 9 steps and 4 examples."""
    random = np.random.default_rng(key)
    mask = random.uniform(size=(9, 4)) * [1, 0, 1, 1]
    return {
        "nothing": {},
        "a mask": {"mask": mask},
        "a mask of time": {"mask": mask[:, 0] + mask[:, 2]},
        "resets": {"reset": random.uniform(size=(9, 4)) < 0.3, "reset_state": jax.tree.map(lambda s: s + 1, state)},
    }[name]


@pytest.mark.parametrize("given", ["nothing", "a mask", "a mask of time", "resets"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_equals_the_gradient_on_one_device(name, given):
    problem = PROBLEMS["lstm"]
    gradient, args = GRADIENTS[name](problem.model, problem.loss), arguments(problem, 0, 9, 4)
    given = more(given, args[1])
    got, want = (jax.jit(g)(*args, **given) for g in (jb.data_parallel(gradient), gradient))
    assert difference(got, want) <= 1e-12


@pytest.mark.parametrize("model", PROBLEMS)
def test_any_model(model):
    problem = PROBLEMS[model]
    gradient, args = jb.bptt(problem.model, problem.loss), arguments(problem, 1, 5, 4)
    assert difference(jax.jit(jb.data_parallel(gradient))(*args), jax.jit(gradient)(*args)) <= 1e-12


def test_leaves_without_a_derivative_and_no_inputs():
    def step(params, state, x):
        count, h = state
        return (count + 1, jax.numpy.tanh(params["a"] * h)), h

    def loss(output, target):
        return (output**2).sum()

    params, state = {"a": np.full(3, 0.7)}, (np.arange(4), np.ones((4, 3)))
    for gradient in (jb.bptt(step, loss), jb.state_gradients(step, loss)):
        got, want = (g(params, state, length=6) for g in (jb.data_parallel(gradient), gradient))
        real = [[leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0] for tree in (got, want)]
        assert difference(*real) <= 1e-12
    assert got[0].dtype == want[0].dtype == jax.dtypes.float0


@pytest.mark.parametrize("name", ["exact", "boundaries", "mean", "chunked", "overlapping"])
def test_one_sum_after_all_loops(name):
    """By the program itself: one all-reduce, in the entry computation, and nothing else that crosses."""
    problem = PROBLEMS["gru"]
    gradient = jb.data_parallel(GRADIENTS[name](problem.model, problem.loss))
    text = jax.jit(gradient).lower(*arguments(problem, 0, 8, 4)).compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    assert " all-reduce" in text[text.index("\nENTRY ") :]
    for movement in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {movement}(" not in text


@pytest.mark.parametrize("name", ["exact", "chunked", "overlapping"])
def test_products_are_those_of_one_device(name):
    """Rows first, weights turned once, sums over rows as one product: as of a batch of that size by itself."""
    problem = PROBLEMS["lstm"]
    gradient = GRADIENTS[name](problem.model, problem.loss)

    def products(function, batch):
        jaxpr = jax.make_jaxpr(function)(*arguments(problem, 0, 48, batch)).jaxpr
        found = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
        shapes = [tuple(v.aval.shape for v in e.invars) for e in found]
        return Counter(zip(shapes, [e.params["dimension_numbers"] for e in found], strict=True))

    assert products(jb.data_parallel(gradient), 64) == products(gradient, 32)


def test_the_state_stays_where_it_is():
    problem = PROBLEMS["gru"]
    gradient = jax.jit(jb.data_parallel(jb.bptt(problem.model, problem.loss, argnums=(0, 1, 2))))
    (_, state), (params_bar, state_bar, xs_bar) = gradient(*arguments(problem, 0, 8, 4))
    assert state.sharding.spec[0] == state_bar.sharding.spec[0] == xs_bar.sharding.spec[1] == "batch"
    assert all(bar.sharding.is_fully_replicated for bar in jax.tree.leaves(params_bar))


def test_a_mesh_with_other_axes():
    mesh = jax.make_mesh((1, 2), ("model", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    problem = PROBLEMS["gru"]
    gradient, args = jb.bptt(problem.model, problem.loss), arguments(problem, 0, 8, 4)
    got = jax.jit(jb.data_parallel(gradient, mesh, "data"))(*args)
    assert difference(got, gradient(*args)) <= 1e-12
    alone = jb.data_parallel(gradient, mesh, "model")
    assert difference(jax.jit(alone)(*args), gradient(*args)) <= 1e-12


def test_training():
    problem = PROBLEMS["gru"]
    gradient, optimizer = jb.bptt(problem.model, problem.loss, reduction="mean"), optax.adam(1e-2)
    params, state, xs, targets = arguments(problem, 0, 8, 4)

    def trained(gradient):
        update, train_state = (
            jax.jit(jb.training.train_step(gradient, optimizer)),
            jb.training.init(params, optimizer, state),
        )
        for _ in range(3):
            train_state, metrics = update(train_state, xs, targets)
        return train_state, metrics

    assert difference(trained(jb.data_parallel(gradient)), trained(gradient)) <= 1e-12


@pytest.mark.parametrize("name", ["state", "xs", "targets", "mask", "reset", "reset_state"])
def test_a_batch_that_does_not_divide_is_refused(name):
    problem = PROBLEMS["elman"]
    params, state, xs, targets = arguments(problem, 0, 8, 4)
    given = {"state": state, "xs": xs, "targets": targets, "mask": np.ones((8, 4)), "reset": np.zeros((8, 4), bool)}
    given |= {"reset_state": state}
    given[name] = jax.tree.map(lambda a: a[:3] if name in ("state", "reset_state") else a[:, :3], given[name])
    with pytest.raises(
        ValueError, match=rf"^{name}.*: found a batch of 3, expected a multiple of 2, the devices along"
    ):
        jb.data_parallel(jb.bptt(problem.model, problem.loss))(params, **given)


def test_wrong_arguments_are_refused():
    problem = PROBLEMS["elman"]
    gradient, mesh = jb.bptt(problem.model, problem.loss), jax.make_mesh((2,), ("batch",))
    with pytest.raises(TypeError, match=r"^gradient: found 3 of type int, expected a function"):
        jb.data_parallel(3)
    with pytest.raises(TypeError, match=r"^mesh: found .*, expected a jax.sharding.Mesh"):
        jb.data_parallel(gradient, jax.devices())
    with pytest.raises(TypeError, match=r"^axis: found 0 of type int, expected the name"):
        jb.data_parallel(gradient, mesh, 0)
    with pytest.raises(ValueError, match=r"^axis: found 'data', expected one of those of the mesh"):
        jb.data_parallel(gradient, mesh, "data")
    with pytest.raises(TypeError, match=r"^xs: found"):
        jb.data_parallel(gradient)({}, np.zeros((4, 2)), "abcd", None)


def test_two_processes_compute_the_gradient_of_one():
    """By the command that the documentation names; it exits with 1 where they do not."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.processes"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sorted(re.findall(r"process (\d) of 2", ran.stdout)) == ["0", "1"]


def test_arguments_may_have_none_in_them():
    def step(params, state, x):
        h = jnp.tanh(state[1] * params["a"] + x[0])
        return (None, h), h

    random = np.random.default_rng(0)
    args = {"a": random.normal(size=3), "b": None}, (None, random.normal(size=(4, 3)))
    args = *args, (random.normal(size=(5, 4, 3)), None), random.normal(size=(5, 4, 3))
    gradient = jb.bptt(step, jb.losses.squared_error)
    assert difference(jax.jit(jb.data_parallel(gradient))(*args), jax.jit(gradient)(*args)) <= 1e-12
