"""Diagnostics beside brute force, one `jax.vjp` per loss in a Python loop, and beside what is known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS, arguments
from steps import WITH_KEY_AND_COUNT

import jax_bptt as jb

D = jb.diagnostics
T, B = 9, 2


@functools.cache
def brute_force(name):
    """‖∂ℓ_s/∂h_t‖ of every loss s, state t and example, `[T, T, B]`, and the arguments."""
    problem, args = PROBLEMS[name], arguments(PROBLEMS[name], 1, T, B)
    step = jax.vmap(getattr(problem.model, "step", problem.model), in_axes=(None, 0, 0))

    def losses(shifts):  # of states that are shifted by so much after each step
        state, values = args.state, []
        for t in range(T):
            state, output = step(args.params, state, at(args.xs, t))
            values.append(jax.vmap(problem.loss)(output, at(args.targets, t)).sum())
            state = jax.tree.map(jnp.add, state, shifts[t])
        return values

    zeros = [jax.tree.map(jnp.zeros_like, args.state)] * T
    pull = jax.jit(jax.vjp(losses, zeros)[1])
    deltas = jax.jit(jb.state_gradients(problem.model, problem.loss))
    norms = np.zeros((T, T, B))
    for s in range(T):
        (of_states,) = pull([jnp.asarray(float(t == s)) for t in range(T)])
        norms[s] = [norm(of_state) for of_state in of_states]
        # A shift after step s comes too late for the output there, which is a function of the state all the same.
        norms[s, s] = norm(at(deltas(*args, mask=np.arange(T) == s), s))
    return norms, args


def at(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def norm(tree):
    """Of each example."""
    return np.sqrt(sum(np.square(leaf).reshape(B, -1).sum(1) for leaf in jax.tree.leaves(tree)))


def windows(k1, k2, losses):
    """How many windows hand the credit of the loss at s to the state after t, `[T, T]`, by the definition."""
    counts = np.zeros((T, T))
    for end in range(k1, T + k1, k1):
        start = max(0, end - k2)
        first = {"newest": end - k1, "all": start, "last": end - 1}[losses]
        for s in range(first, min(end, T)):
            counts[s, start : s + 1] += 1
    return counts


NAMES = ["elman", "lstm", "gru", "stack", "nested"]


@pytest.mark.parametrize("name", NAMES)
def test_credit_matrix_and_lag_profile_equal_brute_force(name):
    norms, args = brute_force(name)
    model, loss = PROBLEMS[name].model, PROBLEMS[name].loss
    matrix = jax.jit(D.credit_matrix(model, loss))(*args)
    np.testing.assert_allclose(matrix, norms.mean(2), rtol=1e-10, atol=1e-13)
    per_step = jax.jit(D.lag_profile(model, loss, T - 1, per_step=True))(*args)
    profile = jax.jit(D.lag_profile(model, loss, T - 2))(*args)
    assert profile.shape == (T - 1,)
    for k in range(T):
        of_lag = np.array([norms[s, s - k].mean() for s in range(k, T)])
        np.testing.assert_allclose(per_step[k:, k], of_lag, rtol=1e-10)
        assert np.isnan(per_step[:k, k]).all()
        if k < T - 1:
            np.testing.assert_allclose(profile[k], of_lag.mean(), rtol=1e-10)


@pytest.mark.parametrize(
    ("k1", "k2", "losses"),
    [
        (1, 3, "newest"),
        (3, 3, "newest"),
        (2, 5, "newest"),
        (2, 5, "all"),
        (4, 6, "last"),
        (4, 2, "all"),
        (9, 9, "newest"),
    ],
)
def test_truncation_cuts_windows_out_of_the_matrix(k1, k2, losses):
    norms, args = brute_force("gru")
    make = functools.partial(D.credit_matrix, PROBLEMS["gru"].model, PROBLEMS["gru"].loss)
    matrix = jax.jit(make(k1=k1, k2=k2, losses=losses))(*args)
    np.testing.assert_allclose(matrix, norms.mean(2) * windows(k1, k2, losses), rtol=1e-10, atol=1e-13)
    profile = jax.jit(D.lag_profile(PROBLEMS["gru"].model, PROBLEMS["gru"].loss, T - 1, k1=k1, k2=k2, losses=losses))(
        *args
    )
    of_lags = [np.diagonal(matrix, -k).mean() for k in range(T)]
    np.testing.assert_allclose(profile, of_lags, rtol=1e-10, atol=1e-13)


def test_masks_are_weights_and_resets_and_burn_in_cut():
    norms, args = brute_force("elman")
    model, loss = PROBLEMS["elman"].model, PROBLEMS["elman"].loss
    mask = np.random.default_rng(0).integers(0, 3, size=(T, B)).astype(float)
    mask[4] = 0
    matrix = jax.jit(D.credit_matrix(model, loss))(*args, mask=mask)
    weights = mask.sum(1)
    want = (norms * mask[:, None]).sum(2) / np.where(weights == 0, 1, weights)[:, None]
    np.testing.assert_allclose(matrix, want, rtol=1e-10, atol=1e-13)
    profile = jax.jit(D.lag_profile(model, loss, 3))(*args, mask=mask)
    sums = [sum((norms[s, s - k] * mask[s]).sum() for s in range(k, T)) / weights[k:].sum() for k in range(4)]
    np.testing.assert_allclose(profile, sums, rtol=1e-10)

    reset = np.arange(T) == 5
    cut = jax.jit(D.credit_matrix(model, loss))(*args, reset=reset, reset_state=args.state)
    assert (np.asarray(cut)[5:, :5] == 0).all()
    np.testing.assert_allclose(cut[:5, :5], norms.mean(2)[:5, :5], rtol=1e-10, atol=1e-13)

    later = jax.jit(D.credit_matrix(model, loss, burn_in=4))(*args)
    np.testing.assert_allclose(later, norms.mean(2)[4:, 4:], rtol=1e-10, atol=1e-13)


def test_states_with_keys_and_integers():
    step, params, state, x = WITH_KEY_AND_COUNT
    states = {
        "h": jnp.stack([state["h"]] * B), "key": jax.random.split(state["key"], B), "t": jnp.stack([state["t"]] * B)
    }  # fmt: skip
    xs, targets = jnp.broadcast_to(x, (T, B, *x.shape)), jnp.zeros((T, B, 2))
    matrix = jax.jit(D.credit_matrix(step, jb.losses.squared_error))(params, states, xs, targets)
    deltas = jb.state_gradients(step, jb.losses.squared_error)(params, states, xs, targets, mask=np.arange(T) == 6)
    np.testing.assert_allclose(matrix[6], np.linalg.norm(deltas["h"], axis=2).mean(1), rtol=1e-10, atol=1e-13)
    assert D.jacobian_norms(step)(params, states, xs).shape == (T, B)


# Bias.


def test_truncation_bias_equals_its_definition():
    args, (model, loss) = arguments(PROBLEMS["gru"], 3, T, 4), (PROBLEMS["gru"].model, PROBLEMS["gru"].loss)
    horizons = [2, (1, 4), T, (T, T + 3)]
    bias = jax.jit(D.truncation_bias(model, loss, horizons))(*args)
    _, exact = jax.jit(jb.reference.bptt(model, loss))(*args)
    assert bias.k1.tolist() == [2, 1, T, T]
    assert bias.k2.tolist() == [2, 4, T, T + 3]
    assert bias.relative_error_of.keys() == bias.cosine_of.keys() == exact.keys()
    for i, (k1, k2) in enumerate(zip(bias.k1.tolist(), bias.k2.tolist(), strict=True)):
        _, cut = jax.jit(jb.reference.truncated_bptt(model, loss, k1, k2))(*args)
        a, b = (np.concatenate([np.ravel(g[name]) for name in exact]) for g in (cut, exact))
        np.testing.assert_allclose(bias.relative_error[i], np.linalg.norm(a - b) / np.linalg.norm(b), atol=1e-12)
        np.testing.assert_allclose(bias.cosine[i], a @ b / np.linalg.norm(a) / np.linalg.norm(b), atol=1e-12)
        for name, g in exact.items():
            error = np.linalg.norm(cut[name] - g) / np.linalg.norm(g)
            np.testing.assert_allclose(bias.relative_error_of[name][i], error, atol=1e-12)
    assert bias.relative_error[0] > 0.01
    assert (bias.relative_error[2:] < 1e-14).all()  # k >= T


def test_standard_error_is_that_of_leaving_out_one_sequence_at_a_time():
    args, (model, loss) = arguments(PROBLEMS["elman"], 5, T, 5), (PROBLEMS["elman"].model, PROBLEMS["elman"].loss)
    make = jax.jit(D.truncation_bias(model, loss, [2]))
    bias, errors = make(*args), []
    for b in range(5):
        without = [np.delete(a, b, axis) for a, axis in zip(args[1:], (0, 1, 1), strict=True)]
        errors.append(float(make(args.params, *without).relative_error[0]))
    want = math.sqrt(4 / 5 * np.square(errors - np.mean(errors)).sum())
    np.testing.assert_allclose(bias.standard_error, [want], rtol=1e-8)
    one = jax.tree.map(lambda a, axis: np.take(a, [0], axis), args[1:], (0, 1, 1))
    assert np.isnan(make(args.params, *one).standard_error).all()


@pytest.mark.parametrize(("losses", "k1", "k2"), [("all", 2, 5), ("last", 3, 4)])
def test_bias_of_means_takes_losses_as_often_as_they_count(losses, k1, k2):
    args, (model, loss) = arguments(PROBLEMS["elman"], 5, T, 3), (PROBLEMS["elman"].model, PROBLEMS["elman"].loss)
    mask = np.random.default_rng(1).integers(1, 3, size=(T, 3)).astype(float)
    make = D.truncation_bias(model, loss, [(k1, k2)], losses=losses, reduction="mean", parameters=["A"], burn_in=1)
    bias = jax.jit(make)(*args, mask=mask)
    options = {"reduction": "mean", "burn_in": 1}
    _, exact = jax.jit(jb.reference.bptt(model, loss, **options))(*args, mask=mask)
    _, cut = jax.jit(jb.reference.truncated_bptt(model, loss, k1, k2, losses=losses, **options))(*args, mask=mask)
    assert bias.relative_error_of.keys() == {"A"}
    want = np.linalg.norm(cut["A"] - exact["A"]) / np.linalg.norm(exact["A"])
    np.testing.assert_allclose(bias.relative_error_of["A"], [want], atol=1e-12)


def diagonal_step(params, h, x):
    h = params["r"] * h + x
    return h, h


def summed(output, target):  # a loss whose gradient is the target
    return jnp.sum(output * target)


@pytest.mark.parametrize("r", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.01])
@pytest.mark.parametrize("k1", [1, 4])
def test_suggest_k2_of_a_known_decay_is_that_of_the_closed_form(r, tolerance, k1):
    # ‖∂ℓ_s/∂h_{s−k}‖ = r^k ‖∂ℓ_s/∂h_s‖, of which a horizon of k steps loses the share r^k.
    rng = np.random.default_rng(0)
    xs, steps = rng.normal(size=(400, 1, 1)), 24
    profile = D.lag_profile(diagonal_step, summed, steps)({"r": r}, jnp.zeros((1, 1)), xs, jnp.ones_like(xs))
    np.testing.assert_allclose(profile, r ** np.arange(steps + 1), rtol=1e-10)
    closed = math.ceil(math.log(tolerance) / math.log(r))
    assert abs(D.suggest_k2(profile, tolerance, k1=k1) - (closed + k1 - 1)) <= 1
    bias = D.estimated_bias(profile)
    np.testing.assert_allclose(bias, r ** np.arange(steps + 2), rtol=1e-8)


def test_of_several_decays_the_slowest_is_what_counts():
    k = np.arange(61)
    profile = 0.5**k + 0.01 * 0.95**k
    exact = (0.5**k / 0.5 + 0.01 * 0.95**k / 0.05) / (1 / 0.5 + 0.01 / 0.05)
    np.testing.assert_allclose(D.estimated_bias(profile)[:-1], exact, rtol=1e-6)
    assert D.suggest_k2(profile, 1e-4) == np.ceil(np.log(1e-4 * 2.2 / 0.2) / np.log(0.95))
    assert D.suggest_k2([1.0] * 5 + [0.0] * 5, 0.3) == 4  # credit that ends


# Dynamics.


def linear_step(params, h, x):
    h = params @ h + x
    return h, h


@pytest.mark.parametrize("count", [None, 2])
def test_lyapunov_exponents_of_a_linear_network_are_the_logs_of_its_eigenvalues(count):
    rng = np.random.default_rng(3)
    basis = rng.normal(size=(4, 4))
    moduli = np.array([1.2, 0.9, 0.5, 0.2])
    A = basis @ np.diag(moduli * [1, -1, 1, 1]) @ np.linalg.inv(basis)
    xs = np.zeros((300, 2, 4))
    exponents = jax.jit(D.lyapunov_exponents(linear_step, count, burn_in=150))(A, np.zeros((2, 4)), xs)
    np.testing.assert_allclose(exponents, [np.log(moduli[:count])] * 2, atol=1e-8)
    norms = D.jacobian_norms(linear_step, burn_in=290)(A, np.zeros((2, 4)), xs)
    np.testing.assert_allclose(norms, np.full((10, 2), np.linalg.norm(A, 2)), rtol=1e-12)
    without_inputs = D.jacobian_norms(lambda params, h, _: (params @ h, h), burn_in=290)
    np.testing.assert_array_equal(without_inputs(A, np.zeros((2, 4)), length=300), norms)
    np.testing.assert_allclose(D.time_to_halve(np.log([0.5, 0.25, 2.0])), [1, 0.5, -1])


def test_jacobian_norms_are_those_of_jacrev():
    problem, args = PROBLEMS["lstm"], arguments(PROBLEMS["lstm"], 1, 4, B)
    norms, state = jax.jit(D.jacobian_norms(problem.model))(*args[:3]), args.state
    for t in range(4):
        for b in range(B):
            one = jax.tree.map(jnp.asarray, at(state, b))
            J = jax.jacrev(lambda s, t=t, b=b: problem.model.step(args.params, s, args.xs[t, b])[0])(one)
            np.testing.assert_allclose(norms[t, b], np.linalg.norm(np.block([list(row) for row in J]), 2), rtol=1e-10)
        state, _ = jax.vmap(problem.model.step, in_axes=(None, 0, 0))(args.params, state, args.xs[t])


def test_lyapunov_exponents_of_the_lorenz_system_are_those_of_the_tables():
    # J. C. Sprott, "Chaos and time-series analysis", 2003: 0.906, 0 and −14.572 per unit of time.
    def flow(h):
        x, y, z = h
        return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    def step(dt, h, _):  # Runge and Kutta's, of fourth order
        k1 = flow(h)
        k2 = flow(h + dt / 2 * k1)
        k3 = flow(h + dt / 2 * k2)
        h = h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + flow(h + dt * k3))
        return h, h

    dt, begin = 0.01, np.random.default_rng(0).normal(size=(16, 3), scale=5)
    of_flow = jax.jit(D.lyapunov_exponents(step, burn_in=1000), static_argnames="length")
    exponents = of_flow(dt, begin, length=11000) / dt
    largest, middle, least = exponents.mean(0)
    assert abs(largest - 0.906) < 0.05 * 0.906
    assert abs(middle) < 0.02
    assert abs(least + 14.572) < 0.02 * 14.572


# Bad input.


def test_states_that_are_not_finite_are_told_with_their_step():
    def step(params, h, x):
        h = h * params + x
        return h, h

    xs = np.ones((6, 1, 1))
    xs[3] = np.nan
    args = jnp.asarray(1.0), jnp.zeros((1, 1)), xs
    message = "state: found NaN or infinity after step 4 of 6, expected finite states"
    for make in (D.lag_profile(step, jb.losses.squared_error, 2), D.credit_matrix(step, jb.losses.squared_error)):
        with pytest.raises(ValueError, match=message):
            make(*args, xs)
        assert np.isnan(jax.jit(make)(*args, xs)).any()
    for make in (D.jacobian_norms(step), D.lyapunov_exponents(step)):
        with pytest.raises(ValueError, match=message):
            make(*args)
    with pytest.raises(ValueError, match="state: found NaN or infinity"):
        D.truncation_bias(step, jb.losses.squared_error, [2])(*args, xs)


ELMAN = jb.cells.elman(1, 2, 1)
LOSS = jb.losses.squared_error


def call(make, steps=5):
    xs = jnp.zeros((steps, 1, 1))
    return make(ELMAN.init(jax.random.key(0)), ELMAN.initial_state(1), xs, xs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: D.lag_profile(ELMAN, LOSS, -1), "lags: found -1, expected at least 0"),
        (lambda: call(D.lag_profile(ELMAN, LOSS, 5)), "lags: found 5, expected less than the 5 time steps"),
        (lambda: D.lag_profile(ELMAN, LOSS, 2, k1=2), "k1, k2: found 2 and None, expected both"),
        (lambda: D.credit_matrix(ELMAN, LOSS, k1=3, k2=2), "k2: found 2, expected at least k1 = 3"),
        (lambda: call(D.credit_matrix(ELMAN, LOSS), 2049), "xs: found 2049 time steps, expected at most 2048"),
        (lambda: D.truncation_bias(ELMAN, LOSS, []), "horizons: found none, expected at least one"),
        (lambda: D.truncation_bias(ELMAN, LOSS, 4), "horizons: found 4 of type int, expected a sequence"),
        (lambda: D.truncation_bias(ELMAN, LOSS, [(1, 2, 3)]), r"horizons: found \(1, 2, 3\), expected pairs"),
        (lambda: D.truncation_bias(ELMAN, LOSS, [(3, 2)]), "k2: found 2, expected at least k1 = 3"),
        (
            lambda: call(D.truncation_bias(ELMAN, LOSS, [2], parameters=["D"])),
            "parameters: found 'D', expected names among 'A', 'B', 'C'",
        ),
        (lambda: call(D.truncation_bias(ELMAN, LOSS, [2], parameters="A")), "parameters: found 'A', expected a seq"),
        (lambda: D.suggest_k2(np.ones(20)), "profile: found no decay: .* by a factor of up to 1 per lag"),
        (lambda: D.suggest_k2(1.1 ** np.arange(20)), "profile: found no decay: .* of up to 1.1 per lag"),
        (lambda: D.suggest_k2([1.0, 0.5]), r"profile: found shape \(2,\), expected \[K \+ 1\] with at least 8 lags"),
        (lambda: D.suggest_k2([1.0, np.nan] * 5), "profile: found NaN or infinity at lag 1"),
        (lambda: D.suggest_k2(np.zeros(9)), "profile: found negative norms or nothing but zeros"),
        (lambda: D.suggest_k2(0.5 ** np.arange(20), 1.5), "tolerance: found 1.5, expected a number between 0 and 1"),
        (lambda: D.suggest_k2(0.5 ** np.arange(20), "low"), "tolerance: found 'low' of type str"),
        (lambda: D.suggest_k2(0.5 ** np.arange(20), k1=0), "k1: found 0, expected at least 1"),
        (lambda: D.lyapunov_exponents(ELMAN, 0), "count: found 0, expected at least 1"),
        (
            lambda: call(lambda *args: D.lyapunov_exponents(ELMAN, 3)(*args[:3])),
            "count: found 3, expected no more than",
        ),
        (lambda: D.jacobian_norms(ELMAN, burn_in=-1), "burn_in: found -1, expected at least 0"),
        (lambda: D.jacobian_norms("cell"), "model: found str, expected a function"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_no_credit_at_all():
    """A loss that reads no state."""
    args = jnp.asarray(0.5), jnp.zeros((2, 1)), jnp.ones((4, 2, 1)), jnp.ones((4, 2, 1))
    step, loss = lambda p, h, x: (jnp.tanh(p * h + x), p * x), jb.losses.squared_error
    np.testing.assert_array_equal(jb.diagnostics.lag_profile(step, loss, 2)(*args), np.zeros(3))
    np.testing.assert_array_equal(jb.diagnostics.credit_matrix(step, loss)(*args), np.zeros((4, 4)))
