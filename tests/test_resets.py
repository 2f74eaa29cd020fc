"""A reset is a gate of the two loops: nothing crosses it, neither infinity nor memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb

T, B, H = 6, 2, 3
RESET = np.arange(T) == 2


def growing(c, h, x):
    """δ_{t−1} = c cos(c h_{t−1}) δ_t, of a state that stays 0."""
    h = jnp.sin(c * h) + x
    return h, h


GROWING = 1e120, np.zeros((B, H)), np.zeros((T, B, H)), np.ones((T, B, H))
GRADIENTS = {
    "dots": lambda step, **more: jb.bptt(step, jb.losses.squared_error, save="dots", **more),
    "states": lambda step, **more: jb.bptt(step, jb.losses.squared_error, save="states", window=2, **more),
    "boundaries": lambda step, **more: jb.bptt(step, jb.losses.squared_error, save="boundaries", window=2, **more),
    "truncated": lambda step, **more: jb.truncated_bptt(step, jb.losses.squared_error, 3, 5, **more),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_delta_that_overflows_behind_a_reset_is_zero_before_it(name):
    got = jax.jit(GRADIENTS[name](growing, argnums=(1, 2)))(*GROWING, reset=RESET)
    want = jax.jit(jb.reference.bptt(growing, jb.losses.squared_error, argnums=(1, 2)))(*GROWING, reset=RESET)
    assert np.isinf(want[1][1][2]).all()
    for a, b in ((got[1][0], want[1][0]), (got[1][1][:2], want[1][1][:2])):
        assert np.isfinite(b).all()
        assert (np.abs(b) > 0).any()
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_so_are_state_gradients_and_what_unroll_hands_back():
    deltas = jax.jit(jb.state_gradients(growing, jb.losses.squared_error, window=2))(*GROWING, reset=RESET)
    want = jax.jit(jb.reference.bptt(growing, jb.losses.squared_error, argnums=2))(*GROWING, reset=RESET)[1]
    np.testing.assert_allclose(deltas[:2], want[:2], rtol=1e-14)
    c, state, xs, targets = GROWING

    def loss(xs, options):
        return ((jb.unroll(growing, c, state, xs, reset=RESET, **options)[1] - targets) ** 2).sum() / 2

    for options in ({}, {"k1": 3, "k2": 5}):
        np.testing.assert_allclose(jax.grad(loss)(xs, options)[:2], want[:2], rtol=1e-14)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_delta_that_only_overflows_on_its_way_through_a_reset(name):
    targets = np.ones((3, B, H)) * np.asarray([1, 1, 1e200])[:, None, None]
    args = 1e120, np.zeros((B, H)), np.zeros((3, B, H)), targets
    reset = np.arange(3) == 2
    got = GRADIENTS[name](growing, argnums=(0, 1, 2))(*args, reset=reset)[1]
    want = jb.reference.bptt(growing, jb.losses.squared_error, argnums=(0, 1, 2))(*args, reset=reset)[1]
    assert difference(got, want) <= 1e-14


def test_no_state_to_reset_to_is_saved():
    cell = jb.cells.lstm(32, 64, 32, dtype=jnp.float32)
    args = cell.init(jax.random.key(0)), cell.initial_state(16), *[np.zeros((256, 16, 32), "float32")] * 2
    gradient = jax.jit(jb.bptt(cell, jb.losses.squared_error))

    def temporary(**call):
        return gradient.lower(*args, **call).compile().memory_analysis().temp_size_in_bytes

    reset = np.arange(256) % 50 == 0
    assert temporary(reset=reset, reset_state=args[1]) <= 1.05 * temporary()
    assert temporary(reset=reset) <= 1.05 * temporary()


def dropout(params, state, x):
    """A state of numbers, an integer and a PRNG key."""
    key, draw = jax.random.split(state["key"])
    h = jnp.tanh(params * jax.random.bernoulli(draw, 0.7, (H,)) * state["h"] + x)
    return {"h": h, "key": key, "t": state["t"] + 1}, h * (1 + state["t"])


@pytest.mark.parametrize("given", [False, True])
def test_keys_of_the_state_go_on_unless_there_is_one_to_reset_to(given):
    state = {"h": np.ones((B, H)), "key": jax.random.split(jax.random.key(0), B), "t": np.zeros(B, "int32")}
    other = state | {"key": jax.random.split(jax.random.key(1), B), "t": np.full(B, 7, "int32")}
    args = 0.9, state, *np.random.default_rng(0).normal(size=(2, T, B, H))
    call = {"reset": RESET} | ({"reset_state": other} if given else {})
    gradients = [make(dropout) for make in GRADIENTS.values() if make is not GRADIENTS["truncated"]]
    gradients.append(jb.truncated_bptt(dropout, jb.losses.squared_error, 1, T))
    want = jax.jit(jb.reference.bptt(dropout, jb.losses.squared_error))(*args, **call)
    steps_after = T - int(RESET.argmax())
    key = other["key"] if given else state["key"]
    for _ in range(steps_after if given else T):
        key = jax.vmap(lambda k: jax.random.split(k)[0])(key)
    for gradient in gradients:
        (loss, end), grads = jax.jit(gradient)(*args, **call)
        assert difference((loss, end["h"], grads), (want[0][0], want[0][1]["h"], want[1])) <= 1e-12
        np.testing.assert_array_equal(jax.random.key_data(end["key"]), jax.random.key_data(key))
        np.testing.assert_array_equal(end["t"], (7 if given else 0) + steps_after)


# Burn-in.


@pytest.mark.parametrize("make", ["bptt", "truncated_bptt"])
@pytest.mark.parametrize("name", ["lstm", "nested"])
def test_outer_derivatives_stop_at_the_burn_in_as_the_gradient_does(name, make):
    problem, k = PROBLEMS[name], () if make == "bptt" else (8, 8)
    args = arguments(problem, 0, 8, 2)
    ours = getattr(jb, make)(problem.model, problem.loss, *k, burn_in=3)
    theirs = getattr(jb.reference, make)(problem.model, problem.loss, *k, burn_in=3)

    def outer(gradient):
        def value(params, state, xs):
            (loss, end), _ = gradient(params, state, xs, args.targets)
            return loss + sum((leaf**2).sum() for leaf in jax.tree.leaves(end))

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*args[:3])

    got, want = outer(ours), outer(theirs)
    assert difference(got, want) <= 1e-12
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(got[1]))
    assert all((leaf[:3] == 0).all() and (leaf[3:] != 0).any() for leaf in jax.tree.leaves(got[2]))


@pytest.mark.parametrize("burn_in", [1, 3])
def test_state_gradients_after_a_burn_in(burn_in):
    problem = PROBLEMS["elman"]
    args = arguments(problem, 1, 7, 2)
    step = jax.vmap(problem.model.step, in_axes=(None, 0, 0))

    def loss(moved):
        """Of states that are moved after each step; those before the burn-in's last one move nothing."""
        state, total = args.state, 0.0
        for t in range(7):
            state, output = step(args.params, state, args.xs[t])
            state = jax.lax.stop_gradient(state) if t < burn_in else state
            state = state + moved[t]
            if t >= burn_in:
                _, output = state, state @ args.params["C"].T
                total += ((output - args.targets[t]) ** 2).sum() / 2
        return total

    want = jax.grad(loss)(np.zeros((7, *args.state.shape)))
    got = jb.state_gradients(problem.model, problem.loss, burn_in=burn_in, window=2)(*args)
    assert difference(got, want) <= 1e-12
    assert (np.asarray(got[: burn_in - 1]) == 0).all()
    assert (np.asarray(got[burn_in - 1]) != 0).all()
