"""A batch that is divided among devices stays divided: each computes its own part, and only gradients are summed up."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb

BATCH = PartitionSpec("batch")
OF_TIME = PartitionSpec(None, "batch")
NOWHERE = PartitionSpec()
GRADIENTS = {
    "dots": lambda problem: jb.bptt(problem.model, problem.loss, window=4, save="dots"),
    "states": lambda problem: jb.bptt(problem.model, problem.loss, window=3, save="states"),
    "boundaries": lambda problem: jb.bptt(problem.model, problem.loss, window=4, save="boundaries"),
    "chunked": lambda problem: jb.truncated_bptt(problem.model, problem.loss, 4, 4),
    "overlapping": lambda problem: jb.truncated_bptt(problem.model, problem.loss, 2, 5, parallel=2),
    "all losses": lambda problem: jb.truncated_bptt(problem.model, problem.loss, 2, 4, losses="all"),
}


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == 2
    return jax.sharding.Mesh(np.array(jax.devices()), ("batch",))


def divided(mesh, args):
    """The arguments, with the batch divided and the params everywhere."""
    specs = NOWHERE, BATCH, OF_TIME, OF_TIME
    return [
        jax.device_put(arg, jax.tree.map(lambda _, spec=spec: NamedSharding(mesh, spec), arg))
        for arg, spec in zip(args, specs, strict=True)
    ]


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("model", ["lstm", "nested"])
def test_jit_moves_nothing_but_gradients(elsewhere, mesh, model, name):
    problem = PROBLEMS[model]
    gradient, args = GRADIENTS[name](problem), arguments(problem, 0, 8, 4)
    compiled = jax.jit(gradient).lower(*divided(mesh, args)).compile()
    assert " all-reduce(" in compiled.as_text()
    for movement in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {movement}(" not in compiled.as_text()
    got = compiled(*divided(mesh, args))
    assert jax.tree.leaves(got[0][1])[0].sharding.spec[0] == "batch"
    assert difference(got, jax.jit(gradient)(*args)) <= 1e-12


@pytest.mark.parametrize("name", GRADIENTS)
def test_jit_of_a_divided_batch_on_cpu(mesh, name):
    problem = PROBLEMS["lstm"]
    gradient, args = GRADIENTS[name](problem), arguments(problem, 1, 8, 4)
    assert difference(jax.jit(gradient)(*divided(mesh, args)), jax.jit(gradient)(*args)) <= 1e-12


@pytest.mark.parametrize("name", GRADIENTS)
def test_shard_map_and_a_sum(mesh, name):
    problem = PROBLEMS["gru"]
    gradient, args = GRADIENTS[name](problem), arguments(problem, 2, 8, 4)

    def of_part(*args):
        (loss, state), grads = gradient(*args)
        return (jax.lax.psum(loss, "batch"), state), jax.lax.psum(grads, "batch")

    of_parts = jax.shard_map(
        of_part,
        mesh=mesh,
        in_specs=(NOWHERE, BATCH, OF_TIME, OF_TIME),
        out_specs=((NOWHERE, BATCH), NOWHERE),
        check_vma=False,
    )
    assert difference(jax.jit(of_parts)(*divided(mesh, args)), jax.jit(gradient)(*args)) <= 1e-12


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["bptt", "truncated_bptt"])
def test_shard_map_as_it_is_by_default(mesh, name, reduction):
    """The gradient of what is everywhere comes out summed, as that of `jax.grad`; a mean is over what all devices have.

    The state begins with zeros that are made inside, so that the types alone do not say that it varies.
    """
    problem = PROBLEMS["lstm"]
    k = (2, 5) if name == "truncated_bptt" else ()
    params, state, xs, targets = arguments(problem, 2, 9, 4)
    zero = jax.tree.map(np.zeros_like, state)
    mask = np.random.default_rng(0).uniform(size=(9, 4)) * [1, 0, 1, 1]
    options = {"argnums": (0, 1, 2), "reduction": reduction}
    gradient = getattr(jb, name)(problem.model, problem.loss, *k, **options)

    def of_part(params, xs, targets, mask):
        state = jax.tree.map(lambda s: jax.numpy.zeros((2, *s.shape[1:])), zero)
        (loss, state), (params_bar, _, xs_bar) = gradient(params, state, xs, targets, mask)
        return (jax.lax.psum(loss, "batch"), state), params_bar, xs_bar

    inputs = NOWHERE, OF_TIME, OF_TIME, OF_TIME
    of_parts = jax.shard_map(of_part, mesh=mesh, in_specs=inputs, out_specs=((NOWHERE, BATCH), NOWHERE, OF_TIME))
    value, (params_bar, _, xs_bar) = jax.jit(gradient)(params, zero, xs, targets, mask)
    assert difference(jax.jit(of_parts)(params, xs, targets, mask), (value, params_bar, xs_bar)) <= 1e-12


@pytest.mark.parametrize("options", [{}, {"k1": 2, "k2": 5}, {"save": "boundaries", "window": 4}])
def test_scan_and_unroll_in_a_shard_map(mesh, options):
    problem = PROBLEMS["gru"]
    params, state, xs, _ = arguments(problem, 3, 9, 4)

    def loss(run, params, state, xs):
        h, outputs = run(params, state, xs)
        return (outputs**2).sum() + h.sum()

    def by_unroll(params, state, xs):
        return jb.unroll(problem.model, params, state, xs, **options)

    def by_scan(params, state, xs):
        step = jax.vmap(problem.model.step, (None, 0, 0))
        return jb.scan(lambda h, x: step(params, h, x), state, xs, **options)

    specs = NOWHERE, BATCH, OF_TIME
    want = jax.grad(loss, (1, 2, 3))(by_unroll, params, state, xs)
    for run in (by_unroll, by_scan):
        gradient = jax.grad(lambda *args, run=run: loss(run, *args), (0, 1, 2))
        of_parts = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs)
        assert difference(jax.jit(of_parts)(params, state, xs), want) <= 1e-12


def test_masks_move_no_rows(elsewhere, mesh):
    problem = PROBLEMS["lstm"]
    args, mask = arguments(problem, 0, 8, 4), np.random.default_rng(0).uniform(size=(8, 4)) < 0.6
    gradient = jb.bptt(problem.model, problem.loss, window=4)
    mask_of = jax.device_put(mask, NamedSharding(mesh, OF_TIME))
    compiled = jax.jit(gradient).lower(*divided(mesh, args), mask_of).compile()
    for movement in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {movement}(" not in compiled.as_text()
    assert difference(compiled(*divided(mesh, args), mask_of), gradient(*args, mask)) <= 1e-12


def test_the_gradient_of_the_inputs_stays_where_they_are(elsewhere, mesh):
    problem = PROBLEMS["gru"]
    gradient = jb.truncated_bptt(problem.model, problem.loss, 2, 5, argnums=(1, 2))
    args = arguments(problem, 3, 8, 4)
    _, (state_bar, xs_bar) = got = jax.jit(gradient)(*divided(mesh, args))
    assert state_bar.sharding.spec[0] == xs_bar.sharding.spec[1] == "batch"
    assert difference(got, jax.jit(gradient)(*args)) <= 1e-12


def test_unroll_inside_a_larger_model(elsewhere, mesh):
    problem = PROBLEMS["gru"]
    args = arguments(problem, 4, 8, 4)

    def objective(params, state, xs, targets):
        _, outputs = jb.unroll(problem.model, params, state, xs)
        return ((outputs - targets) ** 2).sum()

    compiled = jax.jit(jax.grad(objective)).lower(*divided(mesh, args)).compile()
    assert " all-gather(" not in compiled.as_text()
    assert difference(compiled(*divided(mesh, args)), jax.grad(objective)(*args)) <= 1e-12


def test_evaluate(mesh):
    problem = PROBLEMS["lstm"]
    evaluate, args = jb.training.evaluate(problem.model, problem.loss), arguments(problem, 5, 8, 4)
    compiled = jax.jit(evaluate).lower(*divided(mesh, args)).compile()
    assert " all-gather(" not in compiled.as_text()
    assert difference(compiled(*divided(mesh, args)), evaluate(*args)) <= 1e-12


def test_no_device_holds_the_whole_of_a_divided_batch(elsewhere, mesh):
    cell = jb.cells.lstm(8, 16, 4)
    args = cell.init(jax.random.key(0)), cell.initial_state(64), np.zeros((64, 64, 8)), np.zeros((64, 64, 4))
    gradient = jax.jit(jb.bptt(cell, jb.losses.squared_error, save="dots"))
    alone, both = (gradient.lower(*a).compile().memory_analysis() for a in (args, divided(mesh, args)))
    assert both.temp_size_in_bytes < 0.6 * alone.temp_size_in_bytes


@pytest.mark.parametrize("position", range(4))
def test_explicit_axes_are_refused(position):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    args = [*arguments(PROBLEMS["elman"], 6, 8, 4)]
    args[position] = divided(mesh, args)[position] if position else jax.device_put(args[0], NamedSharding(mesh, BATCH))
    name = ("params", "state", "xs", "targets")[position]
    with pytest.raises(ValueError, match=rf"{name}.*: found an array divided along explicit mesh axes \['batch'\]"):
        jb.bptt(PROBLEMS["elman"].model, jb.losses.squared_error)(*args)


def test_explicit_axes_made_automatic():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    problem = PROBLEMS["elman"]
    gradient, args = jb.bptt(problem.model, problem.loss), arguments(problem, 7, 8, 4)
    with jax.set_mesh(mesh):
        out = (NOWHERE, BATCH), NOWHERE
        got = jax.jit(jax.sharding.auto_axes(gradient, out_sharding=out))(*divided(mesh, args))
    assert difference(got, jax.jit(gradient)(*args)) <= 1e-12
