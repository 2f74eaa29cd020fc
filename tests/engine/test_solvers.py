"""Recursions solved at once, as on a GPU: beside loops over time steps, and the gradients that are made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.kinds import kinds
from jaxprs import inner
from problems import difference

import jax_bptt as jb
from jax_bptt.engine.solvers.at_once import RADIX, TAIL, solve

T, B, H, I = 75, 3, 4, 2


def in_turn(factors, constants, start, reverse):
    steps, state, made = len(constants), start, []
    for t in reversed(range(steps)) if reverse else range(steps):
        state = np.einsum("ijbh,jbh->ibh", factors[t if len(factors) > 1 else 0], state) + constants[t]
        made.append(state)
    return np.stack(made[::-1] if reverse else made)


@pytest.mark.parametrize("steps", [1, 2, RADIX, RADIX + 1, 16, 63, 64, 75])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_at_once_is_in_turn(steps, reverse, same, n):
    random = np.random.default_rng(steps)
    factors = random.normal(size=(1 if same else steps, n, n, 1 if same else B, H)) / 2
    constants, start = random.normal(size=(steps, n, B, H)), random.normal(size=(n, B, H))
    got = jax.jit(functools.partial(solve, reverse=reverse))(factors, constants, start)
    wide = np.broadcast_to(factors, (*factors.shape[:3], B, H))
    assert difference(got, in_turn(wide, constants, start, reverse)) <= 1e-11


def test_zero_stays_zero_though_factors_overflow():
    factors, constants = np.full((64, 1, 1, 2), 1e10, "float32"), np.zeros((64, 1, 2), "float32")
    factors[40], constants[63] = 0, 1
    start = np.zeros((1, 2), "float32")
    made = solve(factors, constants, start)
    assert np.isfinite(made).all()
    assert (made[:63] == 0).all()
    factors[40] = 1e10
    made = solve(factors, np.zeros_like(constants), start, reverse=True)
    assert (made == 0).all()
    start[:], factors[40] = np.inf, 0  # a reset is one for what is infinite, too
    made = solve(factors, np.zeros_like(constants), start)
    assert np.isinf(made[:40]).all()
    assert (made[40:] == 0).all()

    def last(constant):
        return solve(jnp.full((1, 1, 1, 2), 1.0), jnp.tile(constant, (9, 1, 2)), jnp.zeros((1, 2)))[-1].sum()

    assert jax.grad(last)(jnp.zeros(1)) == 18  # of a state that is zero as of any other


def mingru(params, h, x):
    z = jax.nn.sigmoid(params["z"] @ x)
    h = (1 - z) * h + z * (params["h"] @ x)
    return h, params["C"] @ h


def independent(params, h, x):
    """Elementwise, and not affine."""
    h = jnp.tanh(params["a"] * h + params["h"] @ x)
    return h, params["C"] @ h


def adaptive(params, state, x):
    """Three leaves of like shape, affine, that all have to do with each other."""
    v, u, w = state
    new = 0.8 * v + params["a"] * u - 0.1 * w + params["h"] @ x
    return (new, 0.9 * u + 0.1 * v, params["a"] * w + 0.2 * new), params["C"] @ new


def rotating(params, z, x):
    z = jnp.exp(-jnp.abs(params["a"]) + 1j * params["a"]) * z + (params["h"] @ x)
    return z, params["C"] @ z.real


def pair(params, h, x):
    """A leaf of pairs, whose factors do not depend on the input."""
    cos, sin = jnp.cos(params["a"]), jnp.sin(params["a"])
    h = 0.9 * jnp.stack([h[0] * cos - h[1] * sin, h[0] * sin + h[1] * cos]) + jnp.stack(
        [params["h"] @ x, params["z"] @ x]
    )
    return h, params["C"] @ h[0]


def linear_attention(params, S, x):
    k, v = params["z"] @ x, params["h"] @ x
    S = jax.nn.sigmoid(params["a"])[:, None] * S + jnp.outer(v, k)
    return S, params["C"] @ (S @ k)


STEPS = {
    "mingru": (mingru, (H,), True),
    "independent": (independent, (H,), False),
    "adaptive": (adaptive, ((H,),) * 3, True),
    "rotating": (rotating, (H,), True),
    "pair": (pair, (2, H), True),
    "linear attention": (linear_attention, (H, H), True),
}


def arguments(name, steps=T, batch=B, seed=0):
    random, shape = np.random.default_rng(seed), STEPS[name][1]
    params = {"z": random.normal(size=(H, I)), "h": random.normal(size=(H, I)), "C": random.normal(size=(2, H))}
    params["a"] = random.uniform(0.2, 0.9, size=H)
    state = jax.tree.map(
        lambda s: random.normal(size=(batch, *s)),
        shape,
        is_leaf=lambda s: isinstance(s, tuple) and isinstance(s[0], int),
    )
    state = state.astype(complex) if name == "rotating" else state
    return params, state, random.normal(size=(steps, batch, I)), random.normal(size=(steps, batch, 2))


def in_turn_of(function, *args):
    """How many steps are run one after the other: the lengths of loops in each other, multiplied."""

    def longest(jaxpr):
        return max((of_equation(eqn) for eqn in jaxpr.eqns), default=1)

    def of_equation(eqn):
        steps = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        return steps * max(map(longest, inner(eqn)), default=1)

    return longest(jax.make_jaxpr(function)(*args).jaxpr)


def reals(tree):
    return [jax.tree.map(part, tree) for part in (np.real, np.imag)]


def loss(output, target):
    return jb.losses.squared_error(output, target)


GRADIENTS = {
    "exact": (lambda step: jb.bptt(step, loss), {}),
    "windows": (lambda step: jb.bptt(step, loss, window=70), {}),
    "dots": (lambda step: jb.bptt(step, loss, save="dots"), {}),
    "boundaries": (
        lambda step: jb.bptt(step, loss, save="boundaries", window=70, reduction="mean"),
        {"reduction": "mean"},
    ),
    "burn-in": (lambda step: jb.bptt(step, loss, burn_in=5), {"burn_in": 5}),
    "truncated": (lambda step: jb.truncated_bptt(step, loss, 70, 70, save="dots"), {"k1": 70, "k2": 70}),
    "overlapping, boundaries": (
        lambda step: jb.truncated_bptt(step, loss, 66, 70, save="boundaries"),
        {"k1": 66, "k2": 70},
    ),
    "last, boundaries": (
        lambda step: jb.truncated_bptt(step, loss, 70, 70, losses="last", save="boundaries"),
        {"k1": 70, "k2": 70, "losses": "last"},
    ),
    "overlapping": (lambda step: jb.truncated_bptt(step, loss, 66, 70), {"k1": 66, "k2": 70}),
}


CASES = [(name, "exact") for name in STEPS] + [(name, of) for name in ("mingru", "pair") for of in GRADIENTS]


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(("name", "gradient"), dict.fromkeys(CASES))
def test_gradients_are_those_of_jax_grad(name, gradient):
    step = STEPS[name][0]
    make, options = GRADIENTS[gradient]
    args, random = arguments(name), np.random.default_rng(1)
    given = {
        "mask": random.integers(0, 2, size=(T, B)).astype(float),
        "reset": random.uniform(size=(T, B)) < 0.1,
        "reset_state": jax.tree.map(lambda s: s + 1, args[1]),
    }
    reference = jb.reference.truncated_bptt if "k1" in options else jb.reference.bptt
    want = jax.jit(reference(step, loss, **options))(*args, **given)
    got = jax.jit(make(step))(*args, **given)
    assert max(map(difference, reals(got), reals(want))) <= 1e-11


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_run_in_turn_but_what_is_not_affine(name):
    step, _, is_affine = STEPS[name]
    in_turn = in_turn_of(jb.bptt(step, loss), *arguments(name))
    assert in_turn <= TAIL if is_affine else in_turn >= T - T % 8
    want, got = (jax.jit(of(step, loss))(*arguments(name)) for of in (jb.reference.bptt, jb.bptt))
    assert max(map(difference, reals(got), reals(want))) <= 1e-11


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("name", ["mingru", "adaptive", "rotating", "independent"])
def test_second_derivatives_and_scans(name):
    step = STEPS[name][0]
    params, state, xs, targets = arguments(name)
    weights = jax.tree.map(lambda p: np.random.default_rng(2).normal(size=p.shape), params)

    def slope(gradient):
        def along(params):
            grads = gradient(params, state, xs, targets)[1]
            return sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), grads, weights)))

        return jax.jit(jax.grad(along))(params)

    assert difference(slope(jb.bptt(step, loss)), slope(jb.reference.bptt(step, loss))) <= 1e-10

    def total(scan, params):
        def body(h, x):
            return jax.vmap(step, (None, 0, 0))(params, h, x)

        end, outputs = scan(body, state, xs)
        return (outputs**2).sum() + sum(jnp.abs(e).sum() for e in jax.tree.leaves(end))

    got, want = (jax.jit(jax.grad(functools.partial(total, scan)))(params) for scan in (jb.scan, jax.lax.scan))
    assert difference(got, want) <= 1e-11


@pytest.mark.usefixtures("as_on_gpu")
def test_state_gradients_and_inputs():
    params, state, xs, targets = arguments("mingru")
    _, by_reference = jb.reference.bptt(mingru, loss, argnums=(1, 2))(params, state, xs, targets)
    _, of_all = jb.bptt(mingru, loss, argnums=(1, 2))(params, state, xs, targets)
    assert difference(of_all, by_reference) <= 1e-12

    def with_nudges(nudges):
        def step(params, h, x):
            h, _ = mingru(params, h, x[0])
            return h + x[1], params["C"] @ (h + x[1])

        return jb.reference.bptt(step, loss)(params, state, (xs, nudges), targets)[0][0]

    deltas = jb.state_gradients(mingru, loss)(params, state, xs, targets)
    assert difference(deltas, jax.grad(with_nudges)(np.zeros((T, B, H)))) <= 1e-12


@pytest.mark.usefixtures("as_on_gpu")
def test_half_precision_products_and_short_windows_stay_in_turn():
    def is_in_turn(step, args, **options):
        return in_turn_of(jb.bptt(step, loss, **options), *args) >= len(args[2]) // 8 * 8

    assert not is_in_turn(mingru, arguments("mingru"))
    assert is_in_turn(mingru, jax.tree.map(lambda a: a.astype("float16"), arguments("mingru")))
    assert is_in_turn(mingru, arguments("mingru", steps=40))
    assert is_in_turn(mingru, arguments("mingru"), unroll=8)
    (kind,) = [kind._replace(T=T, B=B) for kind in kinds() if kind.name == "GRU, 64 steps"]
    params, state, xs = kind.arguments()
    assert is_in_turn(kind.step, (params, state, xs, jb.unroll(kind.step, params, state, xs)[1]))


def test_elsewhere_it_is_a_loop():
    assert in_turn_of(jb.bptt(mingru, loss), *arguments("mingru", steps=512)) == 512


@jax.custom_vjp
def clipped(h):
    return h


clipped.defvjp(lambda h: (h, None), lambda _, bar: (jnp.clip(bar, -0.1, 0.1),))


@pytest.mark.usefixtures("as_on_gpu")
def test_a_pullback_that_is_not_linear_is_run_in_turn():
    def step(params, h, x):
        h = jnp.tanh(params["a"] * clipped(h) + params["h"] @ x)
        return h, params["C"] @ h

    args = arguments("independent")
    want, got = (jax.jit(of(step, loss))(*args) for of in (jb.reference.bptt, jb.bptt))
    assert difference(got, want) <= 1e-12


@pytest.mark.usefixtures("as_on_gpu")
def test_leaves_of_other_dtypes_and_empty_ones():
    def step(params, state, x):
        a, b, empty = state
        a, b = 0.9 * a + (0.1 * b).astype(a.dtype), 0.8 * b + params["h"] @ x
        return (a, b, 0.5 * empty), params["C"] @ b + a.sum().astype(b.dtype)

    params, state, xs, targets = arguments("mingru")
    args = params, (state.astype("float32"), state, np.zeros((B, 0))), xs, targets
    want, got = (jax.jit(of(step, loss))(*args) for of in (jb.reference.bptt, jb.bptt))
    assert difference(got[1], want[1]) <= 1e-5


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(
    "step",
    [
        lambda p, h, x: (jax.lax.stop_gradient(jnp.sin(h)) + p["a"] * h + p["h"] @ x,) * 2,
        lambda p, h, x: (jnp.floor(h) * 0.1 + p["a"] * h + p["h"] @ x,) * 2,
        lambda p, h, x: (p["a"] * h * jnp.where(h > 0, 0.9, 0.3) + p["h"] @ x,) * 2,
    ],
)
def test_what_only_has_the_derivative_of_something_affine_is_run_in_turn(step):
    params, state, xs, _ = arguments("mingru")
    (value, end), grads = jb.bptt(step, lambda y, _: (y**2).sum())(params, state, xs)
    (want, last), of_reference = jb.reference.bptt(step, lambda y, _: (y**2).sum())(params, state, xs)
    assert difference((value, end, grads), (want, last, of_reference)) <= 1e-11


@pytest.mark.usefixtures("as_on_gpu")
def test_a_large_state_into_which_little_comes_is_run_in_turn():
    params, state, xs, targets = arguments("linear attention")
    larger = {name: np.ones((16, *p.shape[1:])) for name, p in params.items()} | {"C": np.ones((2, 16))}
    args = larger, np.ones((B, 16, 16)), xs, targets
    assert in_turn_of(jb.bptt(linear_attention, loss), params, state, xs, targets) <= TAIL
    assert in_turn_of(jb.bptt(linear_attention, loss), *args) >= T - T % 8
    wide = arguments("mingru", batch=2**14)
    assert in_turn_of(jb.bptt(mingru, loss), *wide) >= T - T % 8
