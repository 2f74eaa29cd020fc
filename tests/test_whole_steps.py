"""Steps that are left whole: everything that a gradient function is asked for is as the reference has it, and as the
cut step has it, which a window that is asked for makes of it."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from problems import difference
from steps import normal

import jax_bptt as jb

T, B, N = 7, 3, 8
LOSS = jb.losses.squared_error


def convolution(kernel, state, x):
    image, count = state
    moved = jax.lax.conv_general_dilated(image[None], kernel, (1,), [(1, 1)])[0]
    image = jnp.tanh(moved + x)
    return (image, count + 1), image * count


def memory(p, state, x):
    kept, h = state
    h = jnp.tanh(p[0] @ h + x[0] + jax.nn.softmax(kept @ (p[1] @ h)) @ kept)
    return (kept, h), h


def inner_loop(p, h, x):
    h = jax.lax.fori_loop(0, 3, lambda _, z: jnp.tanh(p @ z + h + x[0]), h)
    return h, h


def solver(p, h, x):
    h = jnp.tanh(jnp.linalg.solve(jnp.eye(N) + p * h[None], h + x[0]))
    return h, h[:2]


STEPS = {
    "convolution": (convolution, normal(0, 2, 2, 3), (normal(1, B, 2, N), jnp.ones(B, int)), (2, N)),
    "memory": (memory, (normal(0, N, N), normal(1, N, N)), (normal(2, B, 200, N), normal(3, B, N)), (N,)),
    "inner loop": (inner_loop, normal(0, N, N), normal(1, B, N), (N,)),
    "solver": (solver, 0.1 * normal(0, N, N), normal(1, B, N), (2,)),
}


def arguments(name):
    step, params, state, output = STEPS[name]
    return step, (params, state, normal(7, T, B, 2, N), normal(8, T, B, *output))


@pytest.mark.parametrize("name", STEPS)
def test_they_are_left_whole(name):
    step, args = arguments(name)
    assert jb.diagnostics.explain(step, *args[:3]).whole


CALLS = {
    "plain": ({}, {}),
    "mean": ({"reduction": "mean"}, {}),
    "burn-in": ({"burn_in": 3}, {}),
    "reset": ({}, {"reset": np.arange(T) % 3 == 2}),
    "reset, to a state, in a burn-in": ({"burn_in": 2}, {"reset": np.arange(T * B).reshape(T, B) % 4 == 1}),
}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_the_reference_and_of_the_cut_step(name, how):
    step, args = arguments(name)
    options, call = CALLS[how]
    if "to a state" in how:
        call = call | {"reset_state": jax.tree.map(lambda s: s + 1, args[1])}
    options = options | {"argnums": (0, 2) if name == "convolution" else (0, 1, 2)}
    want = jax.jit(jb.reference.bptt(step, LOSS, **options))(*args, **call)
    got = jax.jit(jb.bptt(step, LOSS, **options))(*args, **call)
    cut = jax.jit(jb.bptt(step, LOSS, window=3, **options))(*args, **call)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, want)
    assert difference(got, want) <= 1e-12
    assert difference(cut, want) <= 1e-12


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("name", STEPS)
def test_windows_of_truncation_that_meet(name, how):
    step, args = arguments(name)
    options, call = CALLS[how]
    options = options | {"argnums": (0, 2) if name == "convolution" else (0, 1, 2)}
    want = jax.jit(jb.reference.truncated_bptt(step, LOSS, 2, 2, **options))(*args, **call)
    got = jax.jit(jb.truncated_bptt(step, LOSS, 2, 2, **options))(*args, **call)
    cut = jax.jit(jb.truncated_bptt(step, LOSS, 2, 2, parallel=2, **options))(*args, **call)
    assert difference(got, want) <= 1e-12
    assert difference(cut, want) <= 1e-12


@pytest.mark.parametrize("name", STEPS)
def test_what_a_whole_step_does_not_tell_is_of_the_cut_one(name):
    step, args = arguments(name)
    call = {"mask": np.arange(T * B).reshape(T, B) % 3 > 0}
    got, want = (jax.jit(by.bptt(step, LOSS))(*args, **call) for by in (jb, jb.reference))
    assert difference(got, want) <= 1e-12
    deltas = jax.jit(jb.state_gradients(step, LOSS))(*args)
    rest = 3  # δ of the steps at the end is that of a sequence of those steps alone
    state, _ = jb.unroll(step, args[0], args[1], args[2][:-rest])
    alone = jax.jit(jb.state_gradients(step, LOSS, window=1))(args[0], state, *(a[-rest:] for a in args[2:]))
    both = ([d for d in jax.tree.leaves(of) if d.dtype != jax.dtypes.float0] for of in (deltas, alone))
    assert difference(*([d[-rest:] for d in of] for of in both)) <= 1e-12


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"reset": np.arange(T) % 3 == 2}])
@pytest.mark.parametrize("name", STEPS)
def test_unroll_is_that_of_the_cut_step(name, options):
    step, (params, state, xs, targets) = arguments(name)

    def run(params, xs, **ways):
        end, outputs = jb.unroll(step, params, state, xs, **options, **ways)
        return ((outputs - targets) ** 2).sum() + jax.tree.leaves(end)[0].sum(), end

    runs = run, functools.partial(run, window=3)
    both = [jax.jit(jax.value_and_grad(way, (0, 1), has_aux=True))(params, xs) for way in runs]
    assert difference(*both) <= 1e-12


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_scan_is_lax_scan_to_the_last_bit_and_forwards_too(name, reverse):
    step, (params, state, xs, _) = arguments(name)

    def by(scan, params):
        body = jax.vmap(lambda state, x: step(params, state, x))
        return (scan(body, state, xs, T, reverse)[1] ** 2).sum()

    ours, plain = (lambda p, scan=scan: by(scan, p) for scan in (jb.scan, jax.lax.scan))
    jax.tree.map(np.testing.assert_array_equal, jax.value_and_grad(ours)(params), jax.value_and_grad(plain)(params))
    tangents = jax.tree.map(jnp.ones_like, params)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jvp(ours, (params,), (tangents,)), jax.jvp(plain, (params,), (tangents,))
    )


def test_sums_of_half_precision_are_kept_in_single():
    """A step is cut where JAX would sum up its gradient in the precision of the params."""
    kernel = normal(0, 2, 2, 3).astype(jnp.bfloat16)
    step, (_, state, _, _) = arguments("convolution")
    steps = 300
    state, xs = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if a.dtype == float else a, (state, normal(1, steps, B, 2, N))
    )

    def loss(output, _):
        return output.astype(jnp.float32).mean()

    def gradient(kernel, state, xs):
        return jb.bptt(step, loss)(kernel, state, xs, length=steps)[1]

    def through_scan(kernel):
        outputs = jb.scan(jax.vmap(lambda state, x: step(kernel, state, x)), state, xs)[1]
        return outputs.astype(jnp.float32).sum() / outputs[0, 0].size

    wide = [
        jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, a) for a in (kernel, state, xs)
    ]
    want, got = gradient(*wide), gradient(kernel, state, xs)
    assert got.dtype == jnp.bfloat16
    assert difference(got.astype(jnp.float32), want) <= 2e-2
    assert difference(jax.grad(through_scan)(kernel).astype(jnp.float32), want) <= 2e-2
    assert "single precision" in str(jb.diagnostics.explain(step, kernel, state, xs))


@pytest.mark.parametrize("gradient", [True, False])
def test_lengths_that_are_symbolic(gradient):
    step, args = arguments("inner loop")
    (steps,) = jax.export.symbolic_shape("t")

    def run(params, state, xs, targets):
        if gradient:
            return jb.bptt(step, LOSS)(params, state, xs, targets)[1]
        return jb.unroll(step, params, state, xs)[1]

    shapes = [jax.ShapeDtypeStruct((steps, *a.shape[1:]) if i > 1 else a.shape, a.dtype) for i, a in enumerate(args)]
    exported = jax.export.export(jax.jit(run))(*shapes)
    assert difference(exported.call(*args), run(*args)) <= 1e-12


def test_several_steps_of_a_body_on_a_gpu(as_on_gpu):
    """Of a step with a loop in it, whole, as many as of another of as many equations."""
    args = np.ones((N, N)) / N, np.ones((B, N)) / 2, np.ones((16, B, 1)), np.ones((16, B, N))
    gradient = jb.bptt(inner_loop, LOSS)
    jaxpr = jax.make_jaxpr(gradient)(*args).jaxpr
    loops = [e.params for e in equations(jaxpr) if e.primitive.name == "scan" and e.params["length"] == 16]
    assert {p["unroll"] for p in loops} == {8}
    assert difference(gradient(*args), jb.reference.bptt(inner_loop, LOSS)(*args)) <= 1e-12
