import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS, arguments, check_close, difference, oracle

import jax_bptt as jb

ARGNUMS = [0, 1, 2, (0,), (0, 1), (2, 0), (0, 1, 2)]


@functools.cache
def compiled(make, name, **options):
    """Shared by all cases of the same options; jit shares what has the same shapes, too.

    Compiled programs take memory maps, of which a process has 65,530 by default: they are dropped now and then.
    """
    if next(_programs) % 100 == 99:
        jax.clear_caches()
    return jax.jit(make(PROBLEMS[name].model, PROBLEMS[name].loss, **options))


_programs = itertools.count()


def pick(grads, argnums):
    return grads[argnums] if isinstance(argnums, int) else tuple(grads[n] for n in argnums)


def shape_and_dtype(a):
    return a.shape, a.dtype


@st.composite
def cases(draw):
    T = draw(st.sampled_from([1, 2, 3, 5, 6, 7, 12]))
    B = draw(st.sampled_from([1, 3, 17]))  # from 16 on the loop reads transposed weights
    weights = draw(st.sampled_from([None, "time", "time and batch", "none counts", "booleans"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = {
        None: None,
        "time": rng.uniform(size=T),
        "time and batch": rng.integers(0, 3, size=(T, B)),
        "none counts": np.zeros((T, B)),
        "booleans": rng.uniform(size=(T, B)) < 0.7,
    }[weights]
    options = {
        "window": draw(st.sampled_from([None, 1, 2, 3, 4, 5, 20])),
        "save": draw(st.sampled_from(["dots", "states", "boundaries"])),
        "argnums": draw(st.sampled_from(ARGNUMS)),
        "reduction": draw(st.sampled_from(["sum", "mean"])),
    }
    name = draw(st.sampled_from(sorted(PROBLEMS)))
    dtype = draw(st.sampled_from(["float64", "float32"]))
    return name, arguments(PROBLEMS[name], rng.integers(2**32), T, B, dtype), mask, options, dtype


@hypothesis.given(cases())
def test_equals_the_oracle_and_the_reference(case):
    name, args, mask, options, dtype = case
    (loss, state), grads, _ = oracle(PROBLEMS[name], args, mask, options["reduction"])
    want = (loss, state), pick(grads, options["argnums"])
    got = compiled(jb.bptt, name, **options)(*args, mask=mask)
    by_jax = {k: options[k] for k in ("argnums", "reduction")}
    reference = compiled(jb.reference.bptt, name, **by_jax)(*args, mask=mask)
    assert jax.tree.map(shape_and_dtype, got) == jax.tree.map(shape_and_dtype, reference)
    check_close(got, want, dtype)
    check_close(got, reference, dtype)


@pytest.mark.parametrize("save", ["dots", "states", "boundaries"])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "nested"])
def test_state_gradients_equal_the_oracle(name, save):
    problem = PROBLEMS[name]
    args = arguments(problem, 3, 7, 2)
    deltas = oracle(problem, args)[2]
    for window in (None, 3, 7):
        got = jax.jit(jb.state_gradients(problem.model, problem.loss, window=window, save=save))(*args)
        assert difference(got, jax.tree.map(lambda *d: np.stack(d), *deltas)) <= 1e-12


def test_state_gradients_of_a_mean_are_scaled():
    problem = PROBLEMS["elman"]
    args = arguments(problem, 3, 6, 2)
    by_sum, by_mean = (
        jb.state_gradients(problem.model, problem.loss, reduction=reduction)(*args) for reduction in ("sum", "mean")
    )
    assert difference(by_mean, by_sum / 12) <= 1e-12


def test_state_gradients_of_leaves_without_a_derivative_are_float0():
    def step(params, state, x):
        return {"h": jnp.tanh(state["h"] + x), "t": state["t"] + 1}, state["h"] * params

    state = {"h": np.ones((2, 3)), "t": np.zeros(2, "int32")}
    deltas = jb.state_gradients(step, jb.losses.squared_error)(0.5, state, np.ones((4, 2, 3)), np.ones((4, 2, 3)))
    assert deltas["t"].dtype == jax.dtypes.float0
    assert deltas["t"].shape == (4, 2)
    assert deltas["h"].shape == (4, 2, 3)


def test_any_window_gives_the_same_gradient():
    problem = PROBLEMS["elman"]
    for T in (1, 2, 11, 97):
        args = arguments(problem, T, T, 2)
        want = compiled(jb.reference.bptt, "elman", argnums=(0, 1, 2))(*args)
        for window in {None, 1, 5, max(1, T - 1), T, T + 1} if T < 97 else {None}:
            for save in ("dots", "states", "boundaries"):
                got = compiled(jb.bptt, "elman", argnums=(0, 1, 2), window=window, save=save)(*args)
                assert difference(got, want) <= 1e-12


def test_masked_steps_do_not_count_even_where_output_and_target_are_nan():
    problem = PROBLEMS["elman"]
    args = arguments(problem, 5, 6, 2)
    mask = np.ones((6, 2))
    mask[2, 1] = mask[4:] = 0
    spoilt = args._replace(targets=np.where(mask[..., None] == 0, np.nan, args.targets))
    want = oracle(problem, args, mask)[1][0]
    for gradient in (jb.bptt, jb.reference.bptt):
        assert difference(gradient(problem.model, problem.loss)(*spoilt, mask=mask)[1], want) <= 1e-12


def test_longer_and_masked_equals_shorter():
    problem = PROBLEMS["gru"]
    args = arguments(problem, 6, 9, 2)
    shorter = args._replace(xs=args.xs[:6], targets=args.targets[:6])
    for reduction in ("sum", "mean"):
        gradient = jax.jit(jb.bptt(problem.model, problem.loss, reduction=reduction, window=4))
        (loss, _), grads = gradient(*args, mask=np.arange(9) < 6)
        (want_loss, _), want = gradient(*shorter)
        assert difference((loss, grads), (want_loss, want)) <= 1e-12


def test_mean_of_nothing_is_zero():
    problem = PROBLEMS["gru"]
    args = arguments(problem, 6, 5, 2)
    for gradient in (jb.bptt, jb.reference.bptt):
        mean = jax.jit(gradient(problem.model, problem.loss, reduction="mean"))
        (loss, state), grads = mean(*args, mask=np.zeros(5))
        assert loss == 0
        assert all((g == 0).all() for g in jax.tree.leaves(grads))
        assert all(np.isfinite(s).all() for s in jax.tree.leaves(state))


def test_gradient_is_additive_over_examples_and_chunks_of_a_stream_continue():
    problem = PROBLEMS["lstm"]
    args = arguments(problem, 7, 8, 3)
    gradient = compiled(jb.bptt, "lstm", argnums=(0, 1))
    (loss, state), grads = gradient(*args)
    single = [gradient(*args._replace(**_example(args, b))) for b in range(3)]
    assert difference(loss, sum(s[0][0] for s in single)) <= 1e-12
    assert difference(grads[0], jax.tree.map(lambda *g: sum(g), *(s[1][0] for s in single))) <= 1e-12
    assert difference(grads[1], jax.tree.map(lambda *g: np.concatenate(g), *(s[1][1] for s in single))) <= 1e-12
    (first, middle), _ = gradient(args.params, args.state, args.xs[:5], args.targets[:5])
    (second, end), _ = gradient(args.params, middle, args.xs[5:], args.targets[5:])
    assert difference((first + second, end), (loss, state)) <= 1e-12


def _example(args, b):
    one = slice(b, b + 1)
    return {"state": jax.tree.map(lambda s: s[one], args.state), "xs": args.xs[:, one], "targets": args.targets[:, one]}


def test_exact_gradient_agrees_with_finite_differences():
    problem = PROBLEMS["nested"]
    args = arguments(problem, 8, 6, 2)
    gradient = jax.jit(jb.bptt(problem.model, problem.loss, argnums=(0, 1, 2), window=4))

    def value(*args):
        return gradient(*args)[0][0]

    direction = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape), args[:3])
    moved = [jax.tree.map(lambda a, d, e=e: a + e * d, args[:3], direction) for e in (1e-5, -1e-5)]
    slope = (value(*moved[0], args.targets) - value(*moved[1], args.targets)) / 2e-5
    grads = gradient(*args)[1]
    inner = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    np.testing.assert_allclose(inner, slope, rtol=1e-8)


# Inputs, states and params that are not plain arrays of floats.


def test_tokens_keys_and_booleans_as_inputs():
    def step(params, state, x):
        keep = jax.random.bernoulli(x["key"], 0.8, (4,))
        h = jnp.tanh(params["A"] @ jnp.where(keep, state["h"], 0) + params["embedding"][x["token"]])
        h = jnp.where(x["skip"], state["h"], h)
        return {"h": h, "seen": state["seen"] + 1}, params["C"] @ h

    rng = np.random.default_rng(0)
    T, B = 7, 3
    params = {"A": rng.normal(size=(4, 4)), "embedding": rng.normal(size=(5, 4)), "C": rng.normal(size=(5, 4))}
    state = {"h": np.zeros((B, 4)), "seen": np.zeros(B, "int32")}
    xs = {
        "token": rng.integers(5, size=(T, B)),
        "key": jax.random.split(jax.random.key(0), (T, B)),
        "skip": rng.uniform(size=(T, B)) < 0.3,
    }
    targets = rng.integers(5, size=(T, B))
    want = jax.jit(jb.reference.bptt(step, jb.losses.softmax_cross_entropy))(params, state, xs, targets)
    for save in ("dots", "states", "boundaries"):
        for window in (None, 3):
            gradient = jb.bptt(step, jb.losses.softmax_cross_entropy, save=save, window=window)
            got = jax.jit(gradient)(params, state, xs, targets)
            assert difference(got, want) <= 1e-12
            assert (got[0][1]["seen"] == T).all()


def test_complex_state_of_a_linear_recurrent_unit():
    def step(params, h, x):
        h = jnp.exp(-jnp.exp(params["nu"]) + 1j * params["theta"]) * h + params["B"] @ x
        return h, (params["C"] @ h).real

    rng = np.random.default_rng(0)
    params = {
        "nu": rng.normal(size=4),
        "theta": rng.normal(size=4),
        "B": rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3)),
        "C": rng.normal(size=(2, 4)) + 1j * rng.normal(size=(2, 4)),
    }
    args = params, np.zeros((2, 4), complex), rng.normal(size=(9, 2, 3)), rng.normal(size=(9, 2, 2))
    got = jax.jit(jb.bptt(step, jb.losses.squared_error, window=4, argnums=(0, 1)))(*args)
    want = jax.jit(jb.reference.bptt(step, jb.losses.squared_error, argnums=(0, 1)))(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_params_that_the_step_does_not_use_get_zero():
    def step(params, h, x):
        return jnp.tanh(h + x), h

    got = jb.bptt(step, jb.losses.squared_error)({"unused": np.ones(3)}, *[np.ones((2, 3))], *[np.ones((4, 2, 3))] * 2)
    np.testing.assert_array_equal(got[1]["unused"], np.zeros(3))


def test_losses_and_steps_may_differ_in_precision():
    def step(params, h, x):
        h = jnp.tanh(params["A"].astype(jnp.float32) @ h + x)
        return h, h.astype(jnp.float64)

    rng = np.random.default_rng(0)
    params = {"A": jnp.asarray(rng.normal(size=(3, 3)), jnp.bfloat16)}
    args = params, np.zeros((2, 3), "float32"), rng.normal(size=(8, 2, 3)).astype("float32"), np.ones((8, 2, 3))
    got = jb.bptt(step, jb.losses.squared_error, window=3)(*args)
    want = jb.reference.bptt(step, jb.losses.squared_error)(*args)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, want)
    assert difference(got[0], want[0]) <= 5e-6


def test_bfloat16_gradients_are_closer_to_the_exact_ones_than_those_of_jax():
    problem = PROBLEMS["elman"]
    args = arguments(problem, 9, 200, 3)
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), args)
    exact = oracle(problem, jax.tree.map(lambda a: np.asarray(a, "float64"), low))[1][0]
    got = jax.jit(jb.bptt(problem.model, problem.loss))(*low)
    by_jax = jax.jit(jb.reference.bptt(problem.model, problem.loss))(*low)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, by_jax)
    assert difference(got[1], exact) < difference(by_jax[1], exact)
    assert difference(got[1], exact) < 0.05
