"""UORO: right on average, of any step, and drawn from its key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward_mode.test_carried import odd_arguments, odd_step, squares
from problems import PROBLEMS, I, arguments, difference

import jax_bptt as jb

T, B = 5, 2


def over_keys(gradient, keys, parts):
    """Mean and standard error of an estimate, over so many keys."""
    of_keys = jax.jit(jax.vmap(gradient))
    each = [of_keys(of) for of in jnp.split(jax.random.split(jax.random.key(0), keys), parts)]
    leaves = [np.concatenate(of) for of in zip(*map(jax.tree.leaves, each), strict=True)]
    return [leaf.mean(0) for leaf in leaves], [leaf.std(0) / np.sqrt(keys) for leaf in leaves]


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_the_mean_over_keys_is_the_exact_gradient(name):
    problem = PROBLEMS[name]
    args = arguments(problem, 0, T, B)
    reset = np.random.default_rng(0).uniform(size=(T, B)) < 0.2
    init, gradient = jb.uoro(problem.model, problem.loss)

    def one(key):
        carry = init(args.params, args.state, key=key)
        return gradient(args.params, carry, args.xs, args.targets, reset=reset)[1]

    means, errors = over_keys(one, 20_000, 4)
    want = jax.tree.leaves(jb.reference.bptt(problem.model, problem.loss)(*args, reset=reset)[1])
    for mean, error, exact in zip(means, errors, want, strict=True):
        assert (np.abs(mean - exact) <= 5 * error + 1e-12).all()
        assert (error <= 0.1 * np.abs(want[0]).max()).all()  # so that five of them say something


def test_the_mean_over_keys_is_exact_of_complex_leaves_and_custom_derivatives():
    params, state = odd_arguments()
    xs = np.random.default_rng(1).normal(size=(3, 3, I))
    init, gradient = jb.uoro(odd_step, squares)

    def one(key):
        return gradient(params, init(params, state, key=key), xs)[1]

    means, errors = over_keys(lambda key: jax.tree.map(lambda g: jnp.stack([g.real, g.imag]), one(key)), 4_000, 2)
    want = jax.tree.leaves(jb.reference.bptt(odd_step, squares)(params, state, xs, None)[1])
    for mean, error, exact in zip(means, errors, want, strict=True):
        assert (np.abs(mean - np.stack([np.real(exact), np.imag(exact)])) <= 5 * error + 1e-12).all()


def test_one_step_is_exact_and_chunks_go_on():
    problem = PROBLEMS["gru"]
    args = arguments(problem, 0, 4, B)
    init, gradient = jb.uoro(problem.model, problem.loss)
    carry = init(args.params, args.state, key=jax.random.key(1))
    (_, whole), grads = gradient(args.params, carry, args.xs, args.targets)
    first = gradient(args.params, carry, args.xs[:1], args.targets[:1])
    want = jb.reference.bptt(problem.model, problem.loss)(args.params, args.state, args.xs[:1], args.targets[:1])
    assert difference(first[1], want[1]) <= 1e-12
    (_, end), rest = gradient(args.params, first[0][1], args.xs[1:], args.targets[1:])
    assert difference(jax.tree.map(jnp.add, first[1], rest), grads) <= 1e-12
    assert difference(end, whole) <= 1e-12


def test_a_batch_divided_among_devices():
    problem = PROBLEMS["elman"]
    args = arguments(problem, 0, T, 4)
    init, gradient = jb.uoro(problem.model, problem.loss)
    carry = init(args.params, args.state, key=jax.random.key(1))
    want = jax.jit(gradient)(args.params, carry, args.xs, args.targets)
    got = jax.jit(jb.data_parallel(gradient))(args.params, carry, args.xs, args.targets)
    assert difference(got, want) <= 1e-12


def test_a_state_without_derivatives():
    def step(params, n, x):
        return n + 1, params * x * n

    init, gradient = jb.uoro(step, squares)
    params, state, xs = np.ones(3), np.arange(B), np.ones((T, B, 3))
    _, grads = gradient(params, init(params, state, key=jax.random.key(0)), xs)
    assert difference(grads, jb.reference.bptt(step, squares)(params, state, xs, None)[1]) <= 1e-12


ELMAN = PROBLEMS["elman"]
ARGS = arguments(ELMAN, 0, T, B)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pair: pair.init(ARGS.params, ARGS.state, key="seed"), TypeError, "key: found 'seed' of type str"),
        (lambda pair: pair.init(ARGS.params, ARGS.state), TypeError, "key: found None"),
        (
            lambda pair: pair.init({"A": np.ones(3, int)}, ARGS.state, key=jax.random.key(0)),
            TypeError,
            "argnums: found 0",
        ),
        (lambda pair: pair.init(ARGS.params, 1.0, key=jax.random.key(0)), ValueError, "state: found"),
        (
            lambda pair: pair.gradient(ARGS.params, ARGS.state, ARGS.xs, ARGS.targets),
            TypeError,
            "carry: found an array",
        ),
        (
            lambda pair: pair.gradient(
                ARGS.params,
                pair.init(ARGS.params | {"more": np.ones(2)}, ARGS.state, key=jax.random.key(0)),
                ARGS.xs,
                ARGS.targets,
            ),
            TypeError,
            "carry.of_params: found structure",
        ),
        (lambda _: jb.uoro(ELMAN.model, "no"), TypeError, "loss: found 'no'"),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(jb.uoro(ELMAN.model, ELMAN.loss))
