import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import PROBLEMS, H, I, O, arguments, difference

import jax_bptt as jb

EXACT = [{}, {"window": 3}, {"save": "states"}, {"save": "boundaries"}]
TRUNCATED = [
    {"k1": 3, "k2": 3},
    {"k1": 2, "k2": 5, "parallel": 2},
    {"k1": 1, "k2": 4, "save": "boundaries"},
    {"k1": 4, "k2": 6, "save": "boundaries"},
    {"k1": 9, "k2": 12},
]


def by_scan(model, params, state, xs):
    step = jax.vmap(getattr(model, "step", model), in_axes=(None, 0, 0))
    return jax.lax.scan(lambda s, x: step(params, s, x), state, xs)


def by_chunks(k):
    def run(model, params, state, xs):
        outputs = []
        for start in range(0, len(xs), k):
            state = jax.tree.map(jax.lax.stop_gradient, state) if start else state
            state, output = by_scan(model, params, state, xs[start : start + k])
            outputs.append(output)
        return state, jnp.concatenate(outputs)

    return run


@pytest.mark.parametrize("options", EXACT + TRUNCATED)
@pytest.mark.parametrize("name", ["lstm", "nested"])
def test_runs_forward_like_scan(name, options):
    args = arguments(PROBLEMS[name], 1, 8, 2)
    got = jax.jit(functools.partial(jb.unroll, PROBLEMS[name].model, **options))(*args[:3])
    want = by_scan(PROBLEMS[name].model, *args[:3])
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert difference(got, want) <= 1e-13


@pytest.mark.parametrize("options", EXACT + TRUNCATED)
@pytest.mark.parametrize("name", ["elman", "lstm", "nested"])
def test_pulls_cotangents_back_like_the_oracle(name, options):
    problem, T, B = PROBLEMS[name], 8, 2
    rng = np.random.default_rng(0)
    args = arguments(problem, 2, T, B)
    call = {"reset": rng.uniform(size=(T, B)) < 0.2, "reset_state": jax.tree.map(lambda s: s + 1, args.state)}

    def run(params, state, xs, reset_state):
        return jb.unroll(problem.model, params, state, xs, reset=call["reset"], reset_state=reset_state, **options)

    (last, outputs), pull = jax.vjp(jax.jit(run), *args[:3], call["reset_state"])
    cotangents = jax.tree.map(lambda a: rng.normal(size=a.shape), (last, outputs))
    k1, k2 = options.get("k1", T), options.get("k2", T)
    _, (d_params, d_state, d_xs), d_reset, _ = oracles.truncated(
        problem.oracle,
        oracles.inner_product,
        *args[:3],
        cotangents[1],
        np.ones((T, B)),
        "sum",
        k1,
        k2,
        d_end=cotangents[0],
        **call,
    )
    assert difference(pull(cotangents), (d_params, d_state, d_xs, d_reset)) <= 1e-12


@pytest.mark.parametrize(("options", "reference"), [({}, by_scan), ({"k1": 4, "k2": 4}, by_chunks(4))])
def test_inside_a_larger_model_all_gradients_are_those_of_the_reference(options, reference):
    """An embedding before it, attention over all outputs after it, and a loss that is no sum over steps."""
    T, B, V = 10, 3, 6
    cell = jb.cells.gru(I, H, O)
    rng = np.random.default_rng(1)
    params = {
        "embedding": rng.normal(size=(V, I)),
        "cell": jax.tree.map(lambda p: rng.normal(size=p.shape), cell.init(jax.random.key(0))),
        "query": rng.normal(size=O),
        "first": rng.normal(size=H),
    }
    tokens, targets = rng.integers(V, size=(T, B)), rng.normal(size=(B, O))

    def model(unroll):
        def loss(params):
            state = jnp.broadcast_to(params["first"], (B, H))
            last, outputs = unroll(cell, params["cell"], state, params["embedding"][tokens])
            attention = jax.nn.softmax(outputs @ params["query"], axis=0)
            read = (attention[..., None] * outputs).sum(0)
            return jnp.abs(read - targets).sum() + jax.nn.logsumexp(last)

        return jax.jit(jax.value_and_grad(loss))

    got = model(lambda *args: jb.unroll(*args, **options))(params)
    assert difference(got, model(reference)(params)) <= 1e-12


def test_gradient_reaches_what_the_step_closes_over():
    args = arguments(PROBLEMS["elman"], 3, 6, 2)

    def loss(scale, run):
        def step(params, h, x):
            h = jnp.tanh(scale * (params["A"] @ h) + params["B"] @ x)
            return h, params["C"] @ h

        return (run(step, args.params, args.state, args.xs)[1] ** 2).sum()

    assert difference(jax.grad(loss)(0.7, jb.unroll), jax.grad(loss)(0.7, by_scan)) <= 1e-12


def test_integers_and_keys_pass():
    def step(params, state, x):
        noise = jax.random.normal(x["key"], (H,))
        h = jnp.tanh(params * state["h"] + noise)
        return {"h": h, "t": state["t"] + 1}, {"y": h, "seen": state["t"]}

    state = {"h": np.ones((2, H)), "t": np.zeros(2, "int32")}
    xs = {"key": jax.random.split(jax.random.key(0), (5, 2))}

    def loss(params, unroll):
        last, outputs = unroll(step, params, state, xs)
        return (outputs["y"] ** 2).sum() + last["h"].sum()

    for options in ({}, {"k1": 2, "k2": 3}):
        last, outputs = jb.unroll(step, 0.5, state, xs, **options)
        np.testing.assert_array_equal(outputs["seen"], np.arange(5)[:, None] * [1, 1])
        assert (last["t"] == 5).all()
        assert np.isfinite(jax.grad(loss)(0.5, lambda *args, o=options: jb.unroll(*args, **o)))
    assert difference(jax.grad(loss)(0.5, jb.unroll), jax.grad(loss)(0.5, by_scan)) <= 1e-12


def test_forward_mode_raises_the_error_of_jax():
    args = arguments(PROBLEMS["elman"], 4, 5, 2)
    with pytest.raises(TypeError, match=r"forward-mode autodiff.*custom_vjp"):
        jax.jvp(lambda p: jb.unroll(PROBLEMS["elman"].model, p, args.state, args.xs)[1], (args.params,), (args.params,))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k1": 3}, ValueError, "k1, k2: found 3 and None, expected both, for truncated BPTT, or neither, for exact"),
        ({"k1": 3, "k2": 2}, ValueError, "k2: found 2, expected at least k1 = 3"),
        ({"k1": 0, "k2": 2}, ValueError, "k1: found 0, expected at least 1"),
        ({"window": 0}, ValueError, "window: found 0, expected at least 1"),
        ({"parallel": 1.5}, TypeError, r"parallel: found 1\.5 of type float, expected a positive integer"),
        ({"save": "all"}, ValueError, "save: found 'all', expected one of 'dots', 'states', 'boundaries'"),
        ({"reset": np.zeros(4, bool)}, ValueError, r"reset: found shape \(4,\), expected \[T\] = \(5,\)"),
        ({"reset_state": np.zeros((2, H))}, ValueError, "reset_state: found one, but no reset"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    args = arguments(PROBLEMS["elman"], 4, 5, 2)
    with pytest.raises(error, match=message):
        jb.unroll(PROBLEMS["elman"].model, *args[:3], **options)
