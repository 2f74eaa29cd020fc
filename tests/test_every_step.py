"""Steps that broke it once, or would: what they have in common, a section for each kind."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.experimental import io_callback
from problems import difference

import jax_bptt as jb

T, B, H = 7, 3, 4
SQUARED = jb.losses.squared_error
SAVES = ["dots", "states", "boundaries"]


def normal(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def leaky(a, h, x):
    h = jnp.tanh(a * h + x)
    return h, h


LEAKY = (jnp.asarray(0.8), normal(0, B), normal(1, T, B), normal(2, T, B))


def both(name, *args, save=None, **options):
    """The gradient function of that name, and its reference."""
    ours = getattr(jb, name)(*args, **options, save=save)
    return jax.jit(ours), jax.jit(getattr(jb.reference, name)(*args, **options))


def check_equal(name, args, *more, save=None, call=None, tolerance=1e-11, **options):
    ours, reference = both(name, *more, save=save, **options)
    got, want = ours(*args, **call or {}), reference(*args, **call or {})
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(want) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    assert difference(got, want) <= tolerance


# What may be made but once: draws whose bits depend on the shape of a batch, and results of side effects.


def drops_state(s, state, x):
    h, key = state
    key, draw = jax.random.split(key)
    h = jnp.tanh(s * h + x) * jax.random.bernoulli(draw, 0.6, h.shape)
    return (h, key), h


def drops_inputs(s, h, x):
    x, key = x
    h = jnp.tanh(s * h + x * jax.random.uniform(key, x.shape))
    return h, h


def drops_outputs(s, h, x):
    x, key = x
    h = jnp.tanh(s * h + x)
    return h, h * jax.random.normal(key, h.shape)


def drops_in_a_loop(s, h, x):
    x, key = x

    def inner(h, key):
        return jnp.tanh(s * h + x) * jax.random.bernoulli(key, 0.7, h.shape), None

    h, _ = jax.lax.scan(inner, h, jax.random.split(key, 2))
    return h, h


def drops_by_gamma(s, h, x):
    """A draw that is differentiated."""
    x, key = x
    h = jnp.tanh(s * h + x)
    return h, jax.random.gamma(key, jnp.exp(h))


STEPS_THAT_DRAW = [drops_state, drops_inputs, drops_outputs, drops_in_a_loop]
DRAWS = [(step, *how) for step in STEPS_THAT_DRAW for how in (("rbg", "states"), ("unsafe_rbg", "boundaries"))]
DRAWS += [
    (drops_inputs, "threefry2x32", "states"),
    (drops_state, "rbg", "dots"),
    (drops_by_gamma, "unsafe_rbg", "dots"),
]


@pytest.mark.parametrize(("step", "impl", "save"), DRAWS)
def test_draws_are_made_once(step, impl, save):
    keys = jax.random.split(jax.random.key(0, impl=impl), (T, B))
    h, xs, ys = normal(0, B, H), normal(1, T, B, H), normal(2, T, B, H)
    state, inputs = ((h, keys[0]), xs) if step is drops_state else (h, (xs, keys))
    args = jnp.asarray(0.7), state, inputs, ys
    check_equal("bptt", args, step, SQUARED, save=save)
    check_equal("truncated_bptt", args, step, SQUARED, 2, 5, save=save)

    def loss(scan, s):
        return (scan(jax.vmap(functools.partial(step, s)), state, inputs)[1] ** 2).sum()

    scans = functools.partial(jb.scan, save=save), jax.lax.scan
    got, want = (jax.jit(jax.grad(functools.partial(loss, scan)))(args[0]) for scan in scans)
    assert difference(got, want) <= 1e-11


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("make", [lambda *a, **o: jb.bptt(*a, **o), lambda *a, **o: jb.truncated_bptt(*a, 2, 5, **o)])
def test_side_effects_happen_once_and_their_results_are_read(make, save):
    """A host that counts: transition, pullback and readout read what it said."""
    calls = []

    def count(t):
        calls.append(int(t))
        return np.asarray(10 * t, np.int64)

    def counting(a, state, x):
        h, t = state
        told = jax.lax.stop_gradient(io_callback(count, jax.ShapeDtypeStruct((), jnp.int64), t)).astype(h.dtype)
        h = jnp.tanh(a * h + x) * jnp.cos(told)
        return (h, t + 1), h * told

    def by_hand(a, state, x):
        h, t = state
        h = jnp.tanh(a * h + x) * jnp.cos(10.0 * t)
        return (h, t + 1), h * (10.0 * t)

    a, h, xs, ys = LEAKY
    args = a, (h[:1], jnp.zeros(1, jnp.int64)), xs[:, :1], ys[:, :1]
    got = jax.jit(make(counting, SQUARED, save=save))(*args)
    jax.block_until_ready(got)
    assert sorted(calls) == list(range(T))
    assert difference(got, make(by_hand, SQUARED)(*args)) <= 1e-12


# Complex params in training: downhill.


@pytest.mark.parametrize("online", [False, True])
def test_complex_params_go_downhill(online):
    wanted = jnp.asarray([0.8 * np.exp(0.3j), 0.5 * np.exp(-0.9j)])

    def step(w, h, x):
        h = w * h + x
        return h, h.real + 2 * h.imag

    xs = jnp.zeros((16, 1, 1)).at[0].set(1.0)
    zero, start = jnp.zeros((1, 2), complex), jnp.asarray([0.7 + 0.1j, 0.6 - 0.2j])
    targets = jb.unroll(step, wanted, zero, xs)[1]
    optimizer = optax.sgd(0.01)
    if online:
        init, update = jb.training.train_online(step, SQUARED, optimizer, 16, 16)
        state = init(start, zero)
    else:
        update = jb.training.train_step(jb.bptt(step, SQUARED), optimizer)
        state = jb.training.init(start, optimizer, zero)
    update, losses = jax.jit(update), []
    for _ in range(400):
        state, metrics = update(state._replace(carry=zero), xs, targets)
        losses.append(float(jnp.sum(metrics.loss)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6 * losses[0]


# Derivatives of what truncated BPTT returns are truncated as it is.


@pytest.mark.parametrize(
    ("k1", "k2", "losses", "burn_in", "context"),
    [(2, 3, "newest", 0, 0), (3, 3, "last", 2, 0), (1, 4, "all", 0, 2), (2, 2, "newest", 1, 2)],
)
def test_derivatives_of_truncated_results(k1, k2, losses, burn_in, context):
    options = {"losses": losses, "burn_in": burn_in, "context": context, "reduction": "mean"}
    mask = jnp.asarray(np.random.default_rng(3).uniform(size=(T, B)))

    def derivatives(make, a, b, state, xs, ys, mask):
        """Of loss, state and gradient, with respect to all that the step and the loss read, closed over or not."""

        def results(a, b, state, xs, ys, mask):
            def step(a, h, x):
                h = jnp.tanh(a * h + b * x)
                return h, h * b

            gradient = make(step, lambda o, y: 0.5 * (b + 1) * (o - y) ** 2, k1, k2, **options)
            (loss, state), grad = gradient(a, state, xs, ys, mask=mask)
            return loss, state.sum(), grad

        return jax.jit(jax.jacrev(results, argnums=range(6)))(a, b, state, xs, ys, mask)

    a, state, xs, ys = LEAKY
    args = a, jnp.asarray(1.3), state, xs, ys, mask
    got, want = (derivatives(make, *args) for make in (jb.truncated_bptt, jb.reference.truncated_bptt))
    assert difference(got, want) <= 1e-11


# Factors that overflow before they meet δ; selects.


@pytest.mark.parametrize(
    "transition",
    [
        lambda h, x: jax.nn.relu(h) + jax.nn.relu(2 * h - 1) + x,
        lambda h, x: jax.nn.relu(jax.nn.relu(h) + jax.nn.relu(2 * h) + x),
        lambda h, x: jnp.where(x > 0, jnp.where(h > 0, 2 * h, 0), h) + jnp.where(x > 0, jnp.where(h < 1, h * x, 0), 0),
        lambda h, x: jnp.maximum(h, 0.3) * x + jnp.maximum(0.5, jnp.maximum(h, x)),
    ],
)
def test_selects_by_several_predicates_add_up(transition):
    def step(a, h, x):
        h = transition(a * h, x)
        return h, h

    args = jnp.asarray(0.7), normal(1, B, H), normal(2, T, B, H), normal(3, T, B, H)
    check_equal("bptt", args, step, SQUARED)
    check_equal("truncated_bptt", args, step, SQUARED, 2, 3)


def test_losses_of_half_precision_that_count_often_do_not_overflow():
    def step(a, h, x):
        return a * h + x, 30 * (a * h + x)

    def make(dtype):
        args = (
            jnp.asarray(0.5, dtype),
            jnp.ones((1, 1), dtype),
            jnp.ones((64, 1, 1), dtype),
            jnp.ones((64, 1, 1), dtype),
        )
        gradient = jb.truncated_bptt(step, jb.losses.squared_error, 1, 64, losses="all", reduction="mean")
        (loss, _), grads = gradient(*args)
        return np.asarray(loss, "float64"), np.asarray(grads, "float64")

    np.testing.assert_allclose(make("float16"), make("float64"), rtol=5e-3)


@pytest.mark.parametrize("gains", [(200, 400), (300, 1000)])
def test_factors_of_half_precision_do_not_overflow(gains):
    outer, inner = gains

    def step(A, h, x):
        h = outer * jnp.tanh(inner * (A @ h + x))
        return h, 1e-3 * h

    args = (
        normal(0, H, H, scale=1e-7),
        normal(1, B, H, scale=0),
        normal(2, T, B, H, scale=1e-4),
        normal(3, T, B, H, scale=0.1),
    )
    want = jb.reference.bptt(step, SQUARED)(*args)[1]
    got = jb.bptt(step, SQUARED)(*(a.astype(jnp.float16) for a in args))[1].astype(jnp.float64)
    assert difference(got, want) <= 0.02


@pytest.mark.parametrize("save", SAVES)
def test_a_select_inside_a_step_drops_what_is_infinite(save):
    def step(a, h, x):
        x, anew = x
        h = jnp.where(anew, 0.1, a * h) * jnp.where(x > 0, 1.0, 0.5) + jnp.where(x > 1, x, 0.3 * x)
        return h, jnp.exp(1e3 * jnp.maximum(h, 0) * anew)

    anew = jnp.asarray(np.random.default_rng(0).uniform(size=(T, B)) < 0.4).at[0].set(True)
    xs, ys = jnp.abs(normal(1, T, B)) + 0.5, jnp.zeros((T, B))
    args = jnp.asarray(0.5), normal(0, B), (xs, anew), ys

    def loss(output, target):
        return jnp.minimum(output, 1e300)

    ours, reference = both("bptt", step, loss, save=save, argnums=(0, 1))
    assert difference(ours(*args), reference(*args)) <= 1e-11

    def overflow(a, h, x):
        """δ is infinite after the select that drops it."""
        x, anew, large = x
        h = jnp.where(anew, x, a * h)
        return h, (h * large) * large

    reads_last = jnp.zeros((T, B)).at[-1].set(1.0)
    args = jnp.asarray(0.5), normal(0, B), (xs, anew.at[-1].set(True), jnp.full((T, B), 1e200)), reads_last
    ours, reference = both("bptt", overflow, lambda o, y: jnp.where(y > 0, o, 0.0), save=save)
    got, want = ours(*args)[1], reference(*args)[1]
    assert jnp.isfinite(want)
    assert got == want


# Masked steps are not there.


def divides(a, h, x):
    h = jnp.tanh(a * h + x)
    return h, jnp.sqrt(h * h * (x != 0)) / x


def harmless(a, h, x):
    """The same, where an input of zero has no say."""
    h = jnp.tanh(a * h + x)
    safe = jnp.where(x == 0, 1.0, x)
    return h, jnp.where(x == 0, 0.0, jnp.abs(h) / safe)


@pytest.mark.parametrize(("lengths", "reduction"), [((5, 1, 3), "sum"), ((5, 0, 2), "mean"), ((0, 0, 0), "mean")])
@pytest.mark.parametrize(
    ("name", "k", "losses", "computed"),
    [
        ("bptt", (), {}, {}),
        ("bptt", (), {}, {"window": 2, "save": "boundaries"}),
        ("truncated_bptt", (2, 3), {}, {}),
        ("truncated_bptt", (3, 3), {"losses": "all"}, {"save": "boundaries"}),
        ("truncated_bptt", (2, 5), {"losses": "all"}, {}),
    ],
)
def test_what_is_made_of_a_masked_step_is_not_there(name, k, losses, computed, lengths, reduction):
    mask = jnp.arange(T)[:, None] < jnp.asarray(lengths)[None]
    a, state, xs, ys = LEAKY
    options = {"argnums": (0, 1, 2), "reduction": reduction, **losses}
    xs = jnp.where(mask, xs, 0)
    ours = jax.jit(getattr(jb, name)(divides, SQUARED, *k, **options, **computed))
    reference = jax.jit(getattr(jb.reference, name)(harmless, SQUARED, *k, **options))
    got = ours(a, state, xs, jnp.where(mask, ys, jnp.nan), mask)
    want = reference(a, state, xs, jnp.where(mask, ys, 0), mask)
    assert difference(got, want) <= 1e-11


@pytest.mark.parametrize(
    ("k1", "k2", "losses", "save"),
    [(3, 5, "newest", "states"), (4, 4, "newest", "boundaries"), (2, 5, "all", "dots"), (9, 12, "all", "boundaries")],
)
def test_steps_that_fill_up_blocks_make_no_nan(k1, k2, losses, save):
    """A root whose derivative at the first state is infinite but for the input; and an input that would explode."""

    def root(w, h, x):
        h = jnp.sqrt(h + (w * x) ** 2)
        return h, h

    def explodes(w, h, x):
        h = jnp.where(x > 1, jnp.exp(jnp.exp(w * h + 1)), 0.1 * h + w * x)
        return h, jnp.minimum(h, 1e3)

    xs, ys = jnp.abs(normal(1, T, B)), normal(2, T, B)
    for step, inputs in ((root, xs), (explodes, 0.1 * xs.at[-1].set(30.0))):
        args = jnp.asarray(0.8), jnp.zeros(B), inputs, ys
        check_equal("truncated_bptt", args, step, SQUARED, k1, k2, losses=losses, save=save)


@pytest.mark.parametrize("losses", ["newest", "all", "last"])
@pytest.mark.parametrize("k2", [2, 4, 7])
def test_steps_of_the_context_make_no_nan(losses, k2):
    """The norm has no derivative at zero, where the state is in the context, which has no losses."""

    def step(a, h, x):
        h = a * h + x
        return h, jnp.sqrt((h**2).sum())

    a, h, xs, ys = jnp.asarray(0.5), jnp.zeros((B, H)), normal(0, 4, B, H), normal(1, 4, B)
    ahead = [jnp.zeros((2, *of.shape[1:])) for of in (xs, ys)]
    make = functools.partial(jb.truncated_bptt, step, lambda y, t: (y - t) ** 2, 2, k2, losses=losses)
    longer = (jnp.concatenate(pair) for pair in zip(ahead, (xs, ys), strict=True))
    got = jax.jit(make(context=2))(a, h, *longer, reset=np.arange(6) == 2)
    want = jax.jit(make())(a, h, xs, ys)
    assert difference((got[0][0], got[1]), (want[0][0], want[1])) <= 1e-12


# Nothing: no elements, no units, no outputs, no inputs, no targets.


@pytest.mark.parametrize(("where", "save"), [("state", "dots"), ("state", "boundaries"), ("output", "states")])
def test_arrays_of_no_elements(where, save):
    def step(p, state, x):
        h, more = state
        h = jnp.tanh(p["a"] * h + x["x"]) + p["none"].sum() + x["none"].sum()
        more = jnp.tanh(p["A"] @ more) if where == "state" else more
        return (h, more), (h, jnp.zeros((0, 2)) if where == "output" else h)

    a, h, xs, ys = LEAKY
    params = {"a": a, "none": jnp.zeros((0, 3)), "A": jnp.zeros((0, 0))}
    state = h, jnp.zeros((B, 0 if where == "state" else 1))
    args = params, state, {"x": xs, "none": jnp.zeros((T, B, 0))}, (ys, jnp.zeros((T, B, 0)))

    def loss(output, target):
        return SQUARED(output[0], target[0]) + output[1].sum() + target[1].sum()

    check_equal("bptt", args, step, loss, save=save, argnums=(0, 1, 2))
    check_equal("truncated_bptt", args, step, loss, 2, 5, save=save, argnums=(0, 1, 2))


@pytest.mark.parametrize("options", [{}, {"k1": 2, "k2": 3}, {"save": "boundaries"}])
def test_a_step_without_outputs(options):
    a, h, xs, _ = LEAKY

    def ours(a, h, xs):
        return jb.unroll(lambda a, h, x: (leaky(a, h, x)[0], None), a, h, xs, **options)[0].sum()

    def by_outputs(a, h, xs):
        return jb.unroll(leaky, a, h, xs, **options)[1][-1].sum() if not options.get("k1") else None

    got = jax.grad(ours, (0, 1, 2))(a, h, xs)
    if options.get("k1"):  # the cotangent of the last state travels back in the last window alone
        want = jax.grad(lambda a, h, xs: jb.unroll(leaky, a, h, xs, k1=T, k2=T)[0].sum(), (0, 1, 2))(
            a, jb.unroll(leaky, a, h, xs[: T - T % 2 - 1])[0], xs[T - T % 2 - 1 :]
        )
        assert difference(got[0], want[0]) <= 1e-12
    else:
        assert difference(got, jax.grad(by_outputs, (0, 1, 2))(a, h, xs)) <= 1e-12


def steady(a, h, x):
    h = jnp.tanh(a * h + (0 if x is None else x.sum()))
    return h, h


@pytest.mark.parametrize(
    ("name", "k"), [("bptt", ()), ("truncated_bptt", (2, 5)), ("truncated_bptt", (3, 3)), ("state_gradients", ())]
)
def test_without_inputs_and_without_targets(name, k):
    """As with inputs, and targets, of no elements."""
    a, h, _, ys = LEAKY
    empty = jnp.zeros((T, B, 0))
    make = functools.partial(getattr(jb, name), steady)
    want = make(SQUARED, *k)(a, h, empty, ys)
    assert difference(make(SQUARED, *k)(a, h, None, ys), want) <= 1e-14
    assert difference(make(SQUARED, *k)(a, h, targets=ys, length=T), want) <= 1e-14
    without_target = make(lambda output, _: output**2, *k)
    want = make(lambda output, _: output**2, *k)(a, h, empty, ys)
    assert difference(without_target(a, h, length=T), want) <= 1e-14
    assert difference(without_target(a, h, empty), want) <= 1e-14
    assert difference(without_target(a, h, length=T, mask=jnp.ones(T)), want) <= 1e-14
    if name != "state_gradients":
        reference = getattr(jb.reference, name)(steady, lambda output, _: output**2, *k)
        assert difference(reference(a, h, length=T), want) <= 1e-12
        none = make(SQUARED, *k, argnums=(0, 2))(a, h, None, ys)[1]
        assert none[1] is None


def test_evaluate_and_unroll_without_inputs():
    a, h, _, ys = LEAKY
    want = jb.unroll(steady, a, h, jnp.zeros((T, B, 0)))
    assert difference(jb.unroll(steady, a, h, length=T), want) <= 1e-14
    loss = jb.training.evaluate(steady, SQUARED)(a, h, None, ys)[0]
    assert difference(loss, SQUARED(want[1], ys) / (T * B)) <= 1e-14


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "xs: found no arrays, in targets neither, and no length"),
        ({"length": 0}, ValueError, "length: found 0, expected at least 1"),
        ({"length": 2.0}, TypeError, "length: found 2.0 of type float, expected a positive integer"),
        ({"xs": jnp.ones((T, B)), "length": T + 1}, ValueError, r"length: found 8, expected 7 as in xs"),
    ],
)
def test_a_length_that_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        jb.bptt(steady, lambda output, _: output)(LEAKY[0], LEAKY[1], **arguments)
    with pytest.raises(error, match=message):
        jb.unroll(steady, LEAKY[0], LEAKY[1], **arguments)


@pytest.mark.parametrize("options", [{}, {"k1": 2, "k2": 3}, {"save": "boundaries", "window": 3}])
def test_backwards(options):
    a, h, xs, _ = LEAKY
    reset = np.random.default_rng(0).uniform(size=(T, B)) < 0.3

    def run(a, h, xs, reverse):
        turned = slice(None, None, 1 if reverse else -1)
        h, outputs = jb.unroll(leaky, a, h, xs[turned], reset=reset[turned], reverse=reverse, **options)
        return (outputs[turned] ** 2).sum() + h.sum()

    got, want = (jax.value_and_grad(run, (0, 1, 2))(a, h, xs, reverse) for reverse in (True, False))
    assert difference(got, want) <= 1e-13


def test_custom_derivatives_that_take_integers():
    index = jnp.asarray([[0, 1], [1, 2]])

    @jax.custom_jvp
    def gathered(v, i):
        return v * v[i].sum()

    @gathered.defjvp
    def _(primals, tangents):
        (v, i), (dv, _) = primals, tangents
        return gathered(v, i), dv * v[i].sum() + v * dv[i].sum()

    def step(w, h, x):
        h = jnp.tanh(gathered(h @ w + x, index))
        return h, h

    args = normal(0, H, H), normal(1, B, H), normal(2, T, B, H), normal(3, T, B, H)
    check_equal("bptt", args, step, SQUARED)
    check_equal("truncated_bptt", args, step, SQUARED, 2, 3)


@pytest.mark.parametrize("where", ["prepare", "project", "transition", "readout"])
def test_custom_derivatives_that_close_over_arrays(where):
    """Their rules say nothing of what they close over, which is held constant, as by `jax.grad`."""
    phases = jnp.linspace(0, 1, H)
    sine = jax.custom_vjp(lambda v: jnp.sin(v + phases))
    sine.defvjp(lambda v: (sine(v), v), lambda v, bar: (0.7 * bar * jnp.cos(v + phases),))

    def body(w, h, x):
        if where == "prepare":
            return jnp.tanh(h @ w + x), h + sine(w[0])
        if where == "project":
            return jnp.tanh(h @ w + sine(x)), h
        if where == "transition":
            return sine(h @ w + x), h
        h = jnp.tanh(h @ w + x)
        return h, sine(h)

    args = normal(0, H, H), normal(1, B, H), normal(2, T, B, H), normal(3, T, B, H)
    check_equal("bptt", args, body, SQUARED)
    check_equal("truncated_bptt", args, body, SQUARED, 2, 3)

    def loss(scan, w, h, xs):
        h, outputs = scan(lambda h, x: jax.vmap(body, (None, 0, 0))(w, h, x), h, xs)
        return (outputs**2).sum() + h.sum()

    got, want = (
        jax.jit(jax.grad(functools.partial(loss, scan), (0, 1, 2)))(*args[:3]) for scan in (jb.scan, jax.lax.scan)
    )
    assert difference(got, want) <= 1e-12


# Refused without need.


def halves(p, h, x):
    h = jax.lax.while_loop(lambda h: jnp.abs(h).max() > 1, lambda h: h / 2, p * h + x)
    return h, h


def test_a_while_loop_runs_forwards():
    p, h, xs, ys = jnp.asarray(3.0), normal(0, B, H), normal(1, T, B, H), normal(2, T, B, H)
    want = jax.lax.scan(lambda h, x: jax.vmap(halves, (None, 0, 0))(p, h, x), h, xs)
    assert difference(jax.jit(lambda *args: jb.unroll(halves, *args))(p, h, xs), want) <= 1e-14
    assert difference(jb.scan(jax.vmap(functools.partial(halves, p)), h, xs), want) <= 1e-14
    got = jb.training.evaluate(halves, SQUARED, window=3)(p, h, xs, ys)[0]
    assert difference(got, SQUARED(want[1], ys) / (T * B)) <= 1e-14

    def rounds(output, target):
        return jax.lax.while_loop(lambda n: n < jnp.abs(output - target).sum(), lambda n: n + 1, 0.0)

    assert jb.training.evaluate(leaky, rounds)(*LEAKY)[0] > 0
    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        jb.bptt(halves, SQUARED)(p, h, xs, ys)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_strict_promotion(dtype):
    args = jax.tree.map(lambda a: a.astype(dtype), LEAKY)
    mask = jnp.asarray(np.random.default_rng(3).uniform(size=(T, B)))
    for function in (
        jb.bptt(leaky, SQUARED, argnums=(0, 1, 2)),
        jb.truncated_bptt(leaky, SQUARED, 2, 5, losses="all", reduction="mean"),
        jb.truncated_bptt(leaky, SQUARED, 3, 3),
        jb.training.evaluate(leaky, SQUARED),
    ):
        for more in ({}, {"mask": mask, "reset": mask > 0.5}):
            with jax.numpy_dtype_promotion("strict"):
                got = jax.jit(function)(*args, **more)
            assert difference(got, jax.jit(function)(*args, **more)) == 0


def test_options_of_jax_integers():
    one, three = jnp.asarray(1), np.int64(3)
    got = jb.bptt(leaky, SQUARED, window=jnp.asarray(2), burn_in=one, argnums=(np.int32(0), one))(*LEAKY)
    assert difference(got, jb.bptt(leaky, SQUARED, burn_in=1, argnums=(0, 1))(*LEAKY)) <= 1e-14
    got = jb.truncated_bptt(leaky, SQUARED, one, three, parallel=jnp.asarray(2))(*LEAKY)
    assert difference(got, jb.truncated_bptt(leaky, SQUARED, 1, 3)(*LEAKY)) <= 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linen.GRUCell(4), "model: found GRUCell, a module of Flax, expected a function; use module.apply"),
        (lambda: nnx.GRUCell(2, 4, rngs=nnx.Rngs(0)), "model: found GRUCell, a module of Flax.*nnx.split"),
    ],
)
def test_modules_of_flax_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        jb.bptt(make(), SQUARED)


def test_errors_of_training():
    optimizer = optax.sgd(0.1)
    state = jb.training.init(LEAKY[0], optimizer, LEAKY[1])
    with pytest.raises(TypeError, match=r"gradient: found one that returns a gradient of structure .* argnums=0"):
        jb.training.train_step(jb.bptt(leaky, SQUARED, argnums=(0, 1)), optimizer)(state, *LEAKY[2:])
    with pytest.raises(TypeError, match=r"params\['f'\]: found .*tanh.*, expected an array"):
        jb.training.init({"f": jnp.tanh}, optimizer, LEAKY[1])
    with pytest.raises(TypeError, match="carry: found 'text' of type str, expected an array"):
        jb.training.init(LEAKY[0], optimizer, "text")


@pytest.mark.parametrize("symbolic", ["b, t"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: jb.bptt(leaky, SQUARED),
        lambda: jb.bptt(leaky, SQUARED, reduction="mean", save="boundaries", window=3),
        lambda: jb.training.evaluate(leaky, SQUARED),
        lambda: lambda a, h, xs, _: jb.unroll(leaky, a, h, xs),
    ],
)
def test_symbolic_shapes(make, symbolic):
    sizes = dict(zip(symbolic.split(", "), jax.export.symbolic_shape(symbolic), strict=True))
    t, b = sizes.get("t", T), sizes.get("b", B)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((), (b,), (t, b), (t, b))]
    exported = jax.export.export(jax.jit(make()))(*shapes)
    more = [LEAKY]
    if "t" in sizes:
        more.append((*LEAKY[:2], normal(1, 40, B), normal(2, 40, B)))
    if "b" in sizes:
        more.append((LEAKY[0], normal(0, 20), normal(1, T, 20), normal(2, T, 20)))
    for args in more:
        assert difference(exported.call(*args), jax.jit(make())(*args)) <= 1e-12


def test_a_symbolic_number_of_steps_is_not_cut():
    (t,) = jax.export.symbolic_shape("t")
    xs = jax.ShapeDtypeStruct((t, 3), "float64")
    with pytest.raises(ValueError, match=r"length: found t time steps, expected a number, since k1 and k2 cut them"):
        jax.eval_shape(lambda xs: jb.scan(lambda h, x: (h + x, h), jnp.zeros(3), xs, k1=2, k2=2), xs)
