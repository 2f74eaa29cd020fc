import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS, arguments

import jax_bptt as jb
from jax_bptt.engine.leaves import scaled

T, B = 13, 3
HORIZONS, PROBABILITIES = (5, 20), (0.6, 0.4)
KEYS = 30_000


def apart(got, want):
    """The largest difference, beside the largest number: what two gradients have in common leaves nothing but noise."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(want)]
    return max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(got), leaves, strict=True)) / max(
        np.abs(leaf).max() for leaf in leaves
    )


def call_of(name, steps=T, batch=B, dtype="float64"):
    problem, rng = PROBLEMS[name], np.random.default_rng(7)
    args = arguments(problem, 3, steps, batch, dtype)
    reset = rng.uniform(size=(steps, batch)) < 0.15
    options = {"mask": rng.uniform(size=(steps, batch)), "reset": reset, "reset_state": args.state}
    return problem, args, options


MAKERS = {
    "artbp": functools.partial(jb.artbp, k1=4, cut=0.4),
    "artbp, k1 = 1": functools.partial(jb.artbp, k1=1, cut=0.1),
    "artbp, cut by boundary": functools.partial(jb.artbp, k1=4, cut=[0.0, 0.5, 0.8]),
    "telescope": functools.partial(jb.randomized_telescope, k1=4, horizons=HORIZONS, probabilities=PROBABILITIES),
}


def reference_of(maker):
    return functools.partial(getattr(jb.reference, maker.func.__name__), **maker.keywords)


@pytest.mark.parametrize(
    ("maker", "name"), [*itertools.product(MAKERS, ["nested"]), ("artbp", "lstm"), ("telescope", "elman")]
)
def test_equals_the_reference_of_the_same_key(maker, name):
    problem, args, options = call_of(name)
    of = {"argnums": (0, 1, 2), "reduction": "mean"}
    makers = MAKERS[maker], reference_of(MAKERS[maker])
    ours, by_grad = (jax.jit(make(problem.model, problem.loss, **of)) for make in makers)
    seen = set()
    for seed in range(4):
        key = jax.random.key(seed)
        got, want = ours(*args, **options, key=key), by_grad(*args, **options, key=key)
        assert apart(got, want) < 1e-12
        seen.add(sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(got[1])))
    assert len(seen) > 1  # the keys matter


@pytest.mark.parametrize("more", [{"burn_in": 3}, {"context": 4}, {"burn_in": 2, "context": 4}])
@pytest.mark.parametrize("maker", ["artbp, k1 = 1", "telescope"])
def test_burn_in_and_context(maker, more):
    problem, args, options = call_of("gru", steps=17)
    ours, by_grad = (m(problem.model, problem.loss, **more) for m in (MAKERS[maker], reference_of(MAKERS[maker])))
    key = jax.random.key(1)
    got, want = (jax.jit(gradient)(*args, **options, key=key) for gradient in (ours, by_grad))
    assert apart(got, want) < 1e-12


def test_nothing_is_cut_where_nothing_may_be():
    problem, args, options = call_of("gru")
    exact = jb.bptt(problem.model, problem.loss)(*args, **options)
    for k1, cut, options_of in ((T + 5, 0.5, {}), (T, [], {"burn_in": 2})):
        alone = jb.artbp(problem.model, problem.loss, k1, cut, **options_of)(*args, **options, key=jax.random.key(0))
        assert apart(alone, jb.bptt(problem.model, problem.loss, **options_of)(*args, **options)) < 1e-14
    sure = jb.artbp(problem.model, problem.loss, 4, 0.0)(*args, **options, key=jax.random.key(0))
    one = jb.randomized_telescope(problem.model, problem.loss, 4, [T], [1.0])(*args, **options, key=jax.random.key(0))
    assert apart(sure, exact) < 1e-14
    assert apart(one, exact) < 1e-12


def test_each_example_is_cut_by_itself_and_only_between_windows():
    """Of an accumulator of its inputs δ_t counts the losses from t on, each as often as the gates say."""

    def step(params, h, x):
        return h + params * x, h + params * x

    xs = jnp.zeros((6, 40))
    gradient = jb.artbp(step, lambda y, _: y, 2, 0.5, argnums=2)
    _, by_input = gradient(jnp.ones(()), jnp.zeros(40), xs, None, key=jax.random.key(3))
    gates = {0.0, 2.0}
    steps = np.asarray(by_input)
    assert (steps[5] == 1).all()
    assert (steps[4] == 2).all()
    first, second = (steps[3] - 1) / steps[4], (steps[1] - 1) / steps[2]
    assert set(first) == gates
    assert set(second) == gates
    assert (first != second).any()
    assert (steps[2] - steps[3] == 1).all()


@pytest.mark.parametrize(
    ("maker", "name"), [("artbp, k1 = 1", "elman"), ("artbp", "lstm"), ("artbp", "elman"), ("telescope", "elman")]
)
def test_right_on_average(maker, name, record_property):
    """The mean over 30,000 keys within five standard errors of the exact gradient, number by number."""
    problem, args, options = call_of(name, batch=2)
    exact = jax.jit(jb.bptt(problem.model, problem.loss))(*args, **options)[1]
    gradient = MAKERS[maker](problem.model, problem.loss)
    of_keys = jax.jit(jax.vmap(lambda key: gradient(*args, **options, key=key)[1]))
    many = [of_keys(keys) for keys in jnp.split(jax.random.split(jax.random.key(5), KEYS), 10)]
    spread, deviations = [], []
    for want, *parts in zip(*map(jax.tree.leaves, (exact, *many)), strict=True):
        estimates, want = np.concatenate(parts), np.asarray(want)
        error = estimates.std(axis=0) / np.sqrt(KEYS)
        deviations.append(np.abs(estimates.mean(axis=0) - want) / (error + 1e-12 * np.abs(want).max()))
        spread.append((np.square(estimates - want).sum() / KEYS, np.square(want).sum()))
    assert max(d.max() for d in deviations) < 5
    noise = np.sqrt(sum(s for s, _ in spread) / sum(w for _, w in spread))
    record_property("spread, of the norm of the exact gradient", float(noise))
    assert 0.01 < noise < 10  # something was drawn


def test_the_same_key_gives_the_same_bits_jitted_or_not_and_of_many_keys():
    problem, args, options = call_of("gru")
    keys = jax.random.split(jax.random.key(2), 3)
    for maker in (MAKERS["artbp"], MAKERS["telescope"]):
        gradient = maker(problem.model, problem.loss)
        jitted = jax.jit(lambda key, gradient=gradient: gradient(*args, **options, key=key))
        assert apart(jitted(keys[0]), jitted(keys[0])) == 0
        assert apart(jitted(keys[0]), jitted(keys[1])) + apart(jitted(keys[0]), jitted(keys[2])) > 1e-3
        of_keys = jax.jit(jax.vmap(jitted))(keys)
        for i, key in enumerate(keys):
            assert apart(jax.tree.map(lambda a, i=i: a[i], of_keys), jitted(key)) < 1e-12


@pytest.mark.parametrize("maker", ["artbp", "telescope"])
def test_derivatives_of_what_is_returned_are_cut_as_the_gradient_is(maker):
    problem, args, options = call_of("elman")
    gradient, key = MAKERS[maker](problem.model, problem.loss), jax.random.key(4)
    by_grad = reference_of(MAKERS[maker])(problem.model, problem.loss)

    def of(gradient):
        return lambda params: gradient(params, *args[1:], **options, key=key)

    _, grads = jax.jit(of(gradient))(args.params)
    assert apart(jax.jit(jax.grad(lambda p: of(gradient)(p)[0][0]))(args.params), grads) < 1e-12
    tangent = jax.tree.map(lambda p: np.cos(np.arange(p.size)).reshape(p.shape), args.params)
    pushed = [jax.jit(lambda p, g=g: jax.jvp(of(g), (p,), (tangent,))[1])(args.params) for g in (gradient, by_grad)]
    assert apart(*pushed) < 1e-11


@pytest.mark.parametrize("maker", ["artbp", "telescope"])
def test_a_divided_batch_draws_as_a_whole_one(maker):
    problem, args, options = call_of("gru", batch=4)
    gradient = MAKERS[maker](problem.model, problem.loss, reduction="mean")
    divided, whole = jax.jit(jb.data_parallel(gradient)), jax.jit(gradient)
    for seed in range(3):
        key = jax.random.key(seed)
        assert apart(divided(*args, **options, key=key), whole(*args, **options, key=key)) < 1e-12


@pytest.mark.parametrize("losses", ["all", "last"])
def test_a_telescope_of_other_losses(losses):
    problem, args, options = call_of("elman")
    of = problem.model, problem.loss, 4, (2, 20), (0.5, 0.5)
    ours, by_grad = (jax.jit(by.randomized_telescope(*of, losses=losses)) for by in (jb, jb.reference))
    for seed in (0, 1, 2):
        call = {**options, "key": jax.random.key(seed)}
        assert apart(ours(*args, **call), by_grad(*args, **call)) < 1e-12


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_divided_batch_draws_as_a_whole_one_from_any_key(implementation):
    problem, args, _ = call_of("elman", batch=4)
    gradient, key = jb.artbp(problem.model, problem.loss, 2, 0.5), jax.random.key(1, impl=implementation)
    assert apart(jax.jit(jb.data_parallel(gradient))(*args, key=key), jax.jit(gradient)(*args, key=key)) < 1e-12


@pytest.mark.parametrize("options", [{"window": 4, "save": "boundaries"}, {"window": 3, "save": "dots"}, {"unroll": 4}])
def test_however_it_is_computed(options):
    problem, args, call = call_of("lstm", steps=21)
    key = jax.random.key(2)
    of = problem.model, problem.loss, 2, 0.3
    got = jax.jit(jb.artbp(*of, argnums=(0, 1, 2), **options))(*args, **call, key=key)
    want = jax.jit(jb.reference.artbp(*of, argnums=(0, 1, 2)))(*args, **call, key=key)
    assert apart(got, want) < 1e-12


def test_states_of_all_kinds_and_no_inputs():
    """Complex numbers, integers, keys and nothing at all among the state; the length told."""

    def step(params, state, _):
        key, noise = jax.random.split(state["key"])
        z = state["z"] * params["turn"] + params["b"] * jax.random.normal(noise, (2,))
        state = {"z": z, "n": state["n"] + 1, "key": key, "empty": state["empty"], "h": jnp.tanh(state["h"] + z.real)}
        return state, state["h"] * z.imag

    params = {"turn": jnp.asarray([0.9 + 0.2j, 0.5 - 0.7j]), "b": jnp.asarray([0.3, -0.4])}
    state = {"z": jnp.ones((3, 2), complex), "n": jnp.zeros(3, int), "key": jax.random.split(jax.random.key(0), 3)}
    state |= {"empty": jnp.zeros((3, 0)), "h": jnp.zeros((3, 2))}
    of, key = (step, lambda y, _: jnp.square(y).sum(), 2, 0.4), jax.random.key(1)
    (loss, _), grads = jb.artbp(*of)(params, state, length=9, key=key)
    (want_loss, _), want = jb.reference.artbp(*of)(params, state, length=9, key=key)
    assert apart((loss, grads), (want_loss, want)) < 1e-12


def test_solved_at_once_with_gates(as_on_gpu):
    """δ of elementwise steps, whose recursion is no loop on a GPU."""

    def step(params, h, x):
        z = jax.nn.sigmoid(params["z"] @ x)
        h = (1 - z) * h + z * (params["h"] @ x)
        return h, params["C"] @ h

    rng = np.random.default_rng(0)
    params = {"z": rng.normal(size=(4, 3)), "h": rng.normal(size=(4, 3)), "C": rng.normal(size=(2, 4))}
    xs, ts, state = rng.normal(size=(130, 2, 3)), rng.normal(size=(130, 2, 2)), rng.normal(size=(2, 4))
    reset = rng.uniform(size=(130, 2)) < 0.05
    of = step, jb.losses.squared_error, 8, 0.3
    key, argnums = jax.random.key(0), (0, 1, 2)
    got = jax.jit(jb.artbp(*of, argnums=argnums))(params, state, xs, ts, reset=reset, key=key)
    want = jax.jit(jb.reference.artbp(*of, argnums=argnums))(params, state, xs, ts, reset=reset, key=key)
    assert apart(got, want) < 1e-12


def test_a_step_that_is_left_whole():
    def step(params, h, x):
        kernel = params["kernel"]
        h = jnp.tanh(jax.lax.conv_general_dilated(h[None], kernel, (1,), "SAME")[0] + x)
        return h, h.sum()

    rng = np.random.default_rng(0)
    params, state = {"kernel": rng.normal(size=(2, 2, 3)) / 3}, rng.normal(size=(2, 2, 8))
    xs, key = rng.normal(size=(9, 2, 2, 8)), jax.random.key(0)
    explained = str(jb.diagnostics.explain(step, params, state, xs))
    assert "whole" in explained
    of = step, lambda y, _: jnp.square(y), 2, 0.3
    got = jax.jit(jb.artbp(*of, argnums=(0, 1)))(params, state, xs, key=key)
    assert apart(got, jb.reference.artbp(*of, argnums=(0, 1))(params, state, xs, key=key)) < 1e-12


def test_infinite_credit_is_dropped_where_it_is_cut():
    def step(params, h, x):
        return jnp.sqrt(h * x) + params, h

    xs = jnp.ones((4, 2)).at[2].set(0.0)
    (_, _), grads = jb.artbp(step, lambda y, _: y, 1, 0.99)(jnp.ones(()), jnp.ones(2), xs, None, key=jax.random.key(0))
    assert np.isfinite(grads)


def test_a_scale_is_not_rounded_to_what_it_scales():
    scale, leaf = jnp.asarray([1 / 0.3, 0.0], "float32"), jnp.asarray([[1.001], [jnp.inf]], "float16")
    (got,) = scaled(scale, [leaf])
    assert got.dtype == leaf.dtype
    assert got[1, 0] == 0
    assert got[0, 0] == (np.float32(leaf[0, 0]) * np.float32(1 / 0.3)).astype("float16")
    assert got[0, 0] != leaf[0, 0] * jnp.float16(1 / 0.3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    problem, args, _ = call_of("elman", dtype="float32")
    half = jax.tree.map(lambda a: a.astype(dtype), (args.params, args.state))
    with jax.numpy_dtype_promotion("standard"):
        key = jax.random.key(0)
        gradient = jax.jit(jb.artbp(problem.model, problem.loss, 2, 0.3))
        (_, state), grads = gradient(*half, *jax.tree.map(lambda a: a.astype(dtype), args[2:]), key=key)
    assert {a.dtype.name for a in jax.tree.leaves((state, grads))} == {dtype}
    assert all(np.isfinite(np.asarray(a, np.float32)).all() for a in jax.tree.leaves(grads))


OPTIONS = [
    (jb.artbp, (4, 1.0), {}, ValueError, "cut: found 1, expected a probability of at least 0 and less than 1"),
    (jb.artbp, (4, -0.1), {}, ValueError, "cut: found -0.1"),
    (jb.artbp, (4, "half"), {}, TypeError, "cut: found 'half'"),
    (jb.artbp, (4, True), {}, TypeError, "cut: found True"),
    (jb.artbp, (4, [[0.1]]), {}, TypeError, "cut: found"),
    (jb.artbp, (0, 0.5), {}, ValueError, "k1: found 0"),
    (jb.artbp, (4, 0.5), {"context": 3}, ValueError, "context: found 3, expected a multiple of k1"),
    (
        jb.randomized_telescope,
        (4, [8, 4], [0.5, 0.5]),
        {},
        ValueError,
        "horizons: found \\[8, 4\\], expected a sequence of 1 or more growing",
    ),
    (
        jb.randomized_telescope,
        (4, [2, 4], [0.5, 0.5]),
        {},
        ValueError,
        r"horizons: found \[2, 4\], expected at least k1 = 4",
    ),
    (jb.randomized_telescope, (4, 8, [1.0]), {}, TypeError, "horizons: found 8"),
    (jb.randomized_telescope, (4, [], []), {}, ValueError, "horizons: found"),
    (jb.randomized_telescope, (4, [4, 8], [0.5]), {}, ValueError, "probabilities: found shape \\(1,\\)"),
    (jb.randomized_telescope, (4, [4, 8], [0.5, 0.6]), {}, ValueError, "probabilities: found \\[0.5, 0.6\\]"),
    (jb.randomized_telescope, (4, [4, 8], [1.0, 0.0]), {}, ValueError, "probabilities: found"),
    (jb.randomized_telescope, (4, [4, 8], "ab"), {}, TypeError, "probabilities: found 'ab'"),
]


@pytest.mark.parametrize(("maker", "positional", "options", "error", "message"), OPTIONS)
def test_refuses_options(maker, positional, options, error, message):
    problem = PROBLEMS["elman"]
    for make in (maker, getattr(jb.reference, maker.__name__)):
        with pytest.raises(error, match=message):
            make(problem.model, problem.loss, *positional, **options)


@pytest.mark.parametrize("make", [jb.artbp, jb.reference.artbp])
def test_refuses_arguments(make):
    problem, args, _ = call_of("elman")
    with pytest.raises(ValueError, match="cut: found 2 probabilities, expected 3, one for each boundary between"):
        make(problem.model, problem.loss, 4, [0.1, 0.2])(*args, key=jax.random.key(0))
    gradient = make(problem.model, problem.loss, 4, 0.5)
    for key in (None, 3, jax.random.split(jax.random.key(0)), "key"):
        with pytest.raises(TypeError, match=r"key: found .*, expected one of jax.random.key"):
            gradient(*args, key=key)
