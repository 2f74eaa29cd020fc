"""The gradient functions are ordinary JAX functions: what JAX does with functions, it does with these."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb

GRADIENTS = {
    "states": lambda problem: jb.bptt(problem.model, problem.loss, window=4),
    "boundaries": lambda problem: jb.bptt(problem.model, problem.loss, window=4, save="boundaries"),
    "state_gradients": lambda problem: jb.state_gradients(problem.model, problem.loss, window=4),
    "truncated": lambda problem: jb.truncated_bptt(problem.model, problem.loss, 3, 5, parallel=2),
    "unrolled": lambda problem: _unrolled(problem),
    "reference": lambda problem: jb.reference.bptt(problem.model, problem.loss),
    "truncated reference": lambda problem: jb.reference.truncated_bptt(problem.model, problem.loss, 3, 5),
}


def _unrolled(problem):
    def objective(params, state, xs, targets):
        state, outputs = jb.unroll(problem.model, params, state, xs, k1=3, k2=5)
        return ((outputs - targets) ** 2).sum(), state

    return jax.value_and_grad(objective, has_aux=True)


@pytest.fixture(params=GRADIENTS, scope="module")
def gradient(request):
    return GRADIENTS[request.param](PROBLEMS["gru"])


@pytest.fixture(scope="module")
def jitted(gradient):
    return jax.jit(gradient)


@pytest.fixture(scope="module")
def args():
    return arguments(PROBLEMS["gru"], 0, 10, 2)


def test_jit_changes_nothing(gradient, jitted, args):
    assert difference(jitted(*args), gradient(*args)) <= 1e-12


def test_a_second_call_traces_nothing(args):
    cell = PROBLEMS["gru"].model
    traced = []

    def step(params, state, x):
        traced.append("step")
        return cell.step(params, state, x)

    def loss(output, target):
        traced.append("loss")
        return jb.losses.squared_error(output, target)

    gradient = jax.jit(jb.bptt(step, loss))
    gradient(*args)
    assert traced
    traced.clear()
    gradient(*arguments(PROBLEMS["gru"], 1, 10, 2))
    assert traced == []


def test_vmap_over_params_equals_a_loop(gradient, jitted, args):
    several = jax.tree.map(lambda p: np.stack([p, 1.1 * p, 0.9 * p]), args.params)
    got = jax.jit(jax.vmap(gradient, in_axes=(0, None, None, None)))(several, *args[1:])
    want = [jitted(jax.tree.map(lambda p, i=i: p[i], several), *args[1:]) for i in range(3)]
    assert difference(got, jax.tree.map(lambda *g: np.stack(g), *want)) <= 1e-12


def test_vmap_over_sequences_equals_a_loop(gradient, jitted, args):
    several = jax.tree.map(lambda a: np.stack([a, 2 * a]), args[1:])
    got = jax.jit(jax.vmap(gradient, in_axes=(None, 0, 0, 0)))(args.params, *several)
    want = [jitted(args.params, *jax.tree.map(lambda a, i=i: a[i], several)) for i in range(2)]
    assert difference(got, jax.tree.map(lambda *g: np.stack(g), *want)) <= 1e-12


def test_training_inside_scan_equals_a_loop(args):
    gradient = jax.jit(GRADIENTS["states"](PROBLEMS["gru"]))

    def update(carry, _):
        params, state = carry
        (loss, state), grads = gradient(params, state, args.xs, args.targets)
        return (jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), state), loss

    scanned, losses = jax.jit(lambda carry: jax.lax.scan(update, carry, length=3))((args.params, args.state))
    carry, looped = (args.params, args.state), []
    for _ in range(3):
        carry, loss = update(carry, None)
        looped.append(loss)
    assert difference((scanned, losses), (carry, np.stack(looped))) <= 1e-12


def test_checkpoint_changes_nothing(gradient, jitted, args):
    assert difference(jax.jit(jax.checkpoint(gradient))(*args), jitted(*args)) <= 1e-12


def test_derivatives_of_the_gradient_equal_those_of_the_reference(args):
    ours, reference = (GRADIENTS[name](PROBLEMS["gru"]) for name in ("states", "reference"))
    tangent = jax.tree.map(np.cos, args.params)

    def hessian_vector_product(gradient):
        return jax.jvp(lambda params: gradient(params, *args[1:])[1], (args.params,), (tangent,))[1]

    assert difference(hessian_vector_product(ours), hessian_vector_product(reference)) <= 1e-11
    by_jax = jax.grad(lambda params: ours(params, *args[1:])[0][0])(args.params)
    assert difference(by_jax, reference(*args)[1]) <= 1e-12


def test_no_tracer_leaks(gradient, args):
    with jax.checking_leaks():
        jax.jit(gradient)(*args)
        jax.jit(jax.vmap(gradient, in_axes=(None, None, 0, None)))(
            args.params, args.state, np.stack([args.xs] * 2), args.targets
        )


def test_lowers_for_cpu_cuda_and_tpu_and_comes_back_from_disk(gradient, jitted, args, tmp_path):
    exported = jax.export.export(jax.jit(gradient), platforms=("cpu", "cuda", "tpu"))(*args)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (tmp_path / "gradient").write_bytes(exported.serialize())
    loaded = jax.export.deserialize((tmp_path / "gradient").read_bytes())
    assert difference(loaded.call(*args), jitted(*args)) <= 1e-12


def test_bfloat16_params_and_state():
    problem = PROBLEMS["gru"]
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), arguments(problem, 0, 10, 2))
    for name in ("states", "boundaries", "reference"):
        (loss, state), grads = jax.jit(GRADIENTS[name](problem))(*low)
        assert {leaf.dtype for leaf in jax.tree.leaves((loss, state, grads))} == {jnp.dtype(jnp.bfloat16)}
        assert all(np.isfinite(np.asarray(g, "float32")).all() for g in jax.tree.leaves(grads))


def test_side_effects_show_once_per_step_and_example(capfd):
    def step(params, h, x):
        jax.debug.print("x {}", x[0])
        h = jnp.tanh(params * h + x)
        return h, h

    for save in ("dots", "states", "boundaries"):
        xs = np.arange(6.0).reshape(3, 2, 1)
        jax.jit(jb.bptt(step, jb.losses.squared_error, save=save, window=2))(0.5, np.zeros((2, 1)), xs, xs)
        jax.effects_barrier()
        shown = sorted(float(line.split()[1]) for line in capfd.readouterr().out.splitlines())
        assert shown == list(range(6))
