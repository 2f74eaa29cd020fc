"""RTRL, SnAp-1 and e-prop, beside `jax.grad`, of the step itself and of one with stopped products, and beside loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.kinds import kinds
from problems import PROBLEMS, H, I, O, arguments, difference

import jax_bptt as jb

T, B = 6, 3
ZOO = ("minGRU", "LRU", "spikes, ALIF", "delta rule", "layer norm block", "graph messages", "neural ODE")
KINDS = {kind.name: kind._replace(T=4, B=2) for kind in kinds() if kind.name in ZOO}
sg = jax.lax.stop_gradient


def doubled(tree):
    return jax.tree.map(lambda a: a.astype("float64") if a.dtype == jnp.float32 else jnp.asarray(a), tree)


def squares(output, _):
    return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(output))


def run(pair, params, state, xs, targets, length=None, **more):
    gradient = jax.jit(functools.partial(pair.gradient, length=length))
    return gradient(params, pair.init(params, state, xs), xs, targets, **more)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_rtrl_is_exact(name, reduction):
    problem, random = PROBLEMS[name], np.random.default_rng(0)
    args = arguments(problem, 0, T, B)
    more = {
        "mask": random.integers(0, 2, size=(T, B)).astype(float),
        "reset": random.uniform(size=(T, B)) < 0.3,
        "reset_state": jax.tree.map(lambda s: s + 1, args.state),
    }
    make = {"reduction": reduction}
    want = jax.jit(jb.reference.bptt(problem.model, problem.loss, **make))(*args, **more)
    (loss, carry), grads = run(jb.rtrl(problem.model, problem.loss, **make), *args, **more)
    assert difference(((loss, carry.state), grads), want) <= 1e-12


@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "nested"])
def test_the_gradients_of_chunks_add_up(name):
    problem = PROBLEMS[name]
    args = arguments(problem, 1, 12, B)
    want = jax.jit(jb.reference.bptt(problem.model, problem.loss))(*args)
    init, gradient = map(jax.jit, jb.rtrl(problem.model, problem.loss))
    carry, loss, grads = init(args.params, args.state), 0.0, jax.tree.map(np.zeros_like, args.params)
    for start, end in ((0, 1), (1, 5), (5, 12)):
        xs, targets = jax.tree.map(lambda a, s=start, e=end: a[s:e], (args.xs, args.targets))
        (more, carry), new = gradient(args.params, carry, xs, targets)
        loss, grads = loss + more, jax.tree.map(jnp.add, grads, new)
    assert difference(((loss, carry.state), grads), want) <= 1e-12


@pytest.mark.parametrize("name", ZOO)
def test_rtrl_is_exact_of_kinds_of_step(name):
    kind = KINDS[name]
    params, state, xs = doubled(kind.arguments())
    want = jb.reference.bptt(kind.step, squares)(params, state, xs, None, length=kind.T)
    (loss, carry), grads = run(jb.rtrl(kind.step, squares), params, state, xs, None, length=kind.T)
    assert difference(((loss, carry.state), grads), want) <= 1e-10


@jax.custom_vjp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, bar: (bar / (1 + 10 * jnp.abs(v)) ** 2,))


def odd_step(params, state, x):
    """A complex leaf and its conjugate, spikes, a counter, a key, and a leaf that is of no use."""
    z = state["z"] * params["turn"] + 0.1 * jnp.conj(state["z"]) * state["v"] + params["in"] @ x
    z = z * jnp.exp(1j * jnp.abs(z))
    key, own = jax.random.split(state["key"])
    v = 0.9 * state["v"] - spike(state["v"]) + jnp.real(z) * jax.random.bernoulli(own, 0.7, z.shape)
    new = {"z": z, "v": v, "key": key, "n": state["n"] + 1, "old": state["old"]}
    return new, (z.real * params["out"], spike(v), state["v"])


def odd_arguments():
    random = np.random.default_rng(0)
    params = {
        "turn": random.normal(size=4) + 1j * random.normal(size=4),
        "in": random.normal(size=(4, I)) + 1j * random.normal(size=(4, I)),
        "out": random.normal(size=4),
    }
    state = {
        "z": random.normal(size=(B, 4)) + 0j,
        "v": random.normal(size=(B, 4)),
        "key": jax.random.split(jax.random.key(0), B),
        "n": np.zeros(B, int),
        "old": random.normal(size=(B, 2)),
    }
    return jax.tree.map(lambda a: a / 2 if jnp.iscomplexobj(a) else a, params), state


def test_rtrl_is_exact_of_complex_leaves_counters_keys_and_custom_derivatives():
    params, state = odd_arguments()
    xs = np.random.default_rng(1).normal(size=(T, B, I))
    reset = np.random.default_rng(2).uniform(size=(T, B)) < 0.2
    want = jb.reference.bptt(odd_step, squares)(params, state, xs, None, reset=reset)
    (loss, carry), grads = run(jb.rtrl(odd_step, squares), params, state, xs, None, reset=reset)
    for got, of in ((grads, want[1]), ((loss, carry.state), want[0])):
        parts = [
            jax.tree.map(part, [a for a in jax.tree.leaves(tree) if not is_key(a)])
            for tree in (got, of)
            for part in (np.real, np.imag)
        ]
        assert difference(parts[:2], parts[2:]) <= 1e-12


def is_key(a):
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)


@pytest.mark.parametrize("strict", ["bfloat16", "float16"])
def test_half_precision_is_carried_in_single(strict):
    problem = PROBLEMS["gru"]
    args = arguments(problem, 0, T, B, strict)
    with jax.numpy_dtype_promotion("strict"):
        (_, carry), grads = run(jb.rtrl(problem.model, problem.loss), *args)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(carry.influence)} == {"float32"}
    want = jb.reference.bptt(problem.model, problem.loss)(*arguments(problem, 0, T, B))[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {strict}
    assert difference(grads, want) <= 0.1


def test_what_the_mask_drops_may_be_infinite():
    def step(params, h, x):
        h = jnp.tanh(params["a"] * h + x)
        return h, jnp.sqrt(params["c"] * x)

    random = np.random.default_rng(0)
    xs, mask = random.uniform(size=(T, B, 4)), random.integers(0, 2, size=(T, B)).astype(float)
    xs, params = xs * mask[..., None], {"a": random.normal(size=4), "c": np.ones(4)}
    args = params, random.normal(size=(B, 4)), xs, np.where(mask[..., None] == 0, np.nan, 0.0) + np.ones((T, B, 4))
    want = jb.bptt(step, jb.losses.squared_error)(*args, mask=mask)
    (loss, carry), grads = run(jb.rtrl(step, jb.losses.squared_error), *args, mask=mask)
    assert difference(((loss, carry.state), grads), want) <= 1e-12


def temporary(pair, params, state, xs):
    lowered = jax.jit(pair.gradient).lower(params, pair.init(params, state, xs), xs, None)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["minGRU", "LRU"])
def test_an_elementwise_jacobian_takes_the_memory_of_the_params(name):
    kind = next(kind for kind in kinds() if kind.name == name)  # minGRU: of 128 units
    params, state, xs = kind.arguments()
    pair = jb.rtrl(kind.step, squares)
    numbers = kind.B * sum(leaf.size for leaf in jax.tree.leaves(params))
    influence = pair.init(params, state, xs).influence
    assert sum(leaf.size for leaf in jax.tree.leaves(influence)) <= 1.1 * numbers
    short, long = (temporary(pair, params, state, xs[:n]) for n in (64, 512))
    assert short == long <= 6 * 4 * numbers


def test_memory_does_not_depend_on_time_behind_products():
    problem = PROBLEMS["gru"]
    pair = jb.rtrl(problem.model, squares)
    short, long = (temporary(pair, *jax.tree.map(jnp.asarray, arguments(problem, 0, n, B)[:3])) for n in (32, 512))
    assert short == long


def test_heads_that_do_not_meet_are_kept_apart():
    heads, size = 3, 4

    def step(params, S, x):
        S = jnp.tanh(jnp.einsum("hij,hj->hi", params["A"], S) + (params["B"] @ x).reshape(heads, size))
        return S, S

    random = np.random.default_rng(0)
    params = {"A": random.normal(size=(heads, size, size)), "B": random.normal(size=(heads * size, I))}
    args = params, random.normal(size=(B, heads, size)), random.normal(size=(T, B, I))
    (_, carry), grads = run(jb.rtrl(step, squares), *args, None)
    assert difference(grads, jb.reference.bptt(step, squares)(*args, None)[1]) <= 1e-12
    numbers = B * size * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(leaf.size for leaf in jax.tree.leaves(carry.influence)) == numbers


# SnAp-1.


def test_snap1_is_a_loop_by_hand():
    problem = PROBLEMS["elman"]
    args = arguments(problem, 0, T, B)
    (A, B_, C), want = (args.params[name] for name in "ABC"), jax.tree.map(np.zeros_like, args.params)
    for b in range(B):
        h, of_A, of_B = args.state[b], np.zeros((H, H)), np.zeros((H, I))
        for x, y in zip(args.xs[:, b], args.targets[:, b], strict=True):
            after = np.tanh(A @ h + B_ @ x)
            slope = 1 - after**2
            of_A = (slope * A.diagonal())[:, None] * of_A + np.outer(slope, h)
            of_B = (slope * A.diagonal())[:, None] * of_B + np.outer(slope, x)
            h, error = after, C @ after - y
            want["A"] += (C.T @ error)[:, None] * of_A
            want["B"] += (C.T @ error)[:, None] * of_B
            want["C"] += np.outer(error, h)
    _, grads = run(jb.snap1(problem.model, problem.loss), *args)
    assert difference(grads, want) <= 1e-12


def masked_rtrl(step, params, state, xs):
    """SnAp-1 of one example and of the squares of its states, with whole matrices."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    start, unravel_state = jax.flatten_util.ravel_pytree(state)

    def after(flat, h, x):
        return jax.flatten_util.ravel_pytree(step(unravel(flat), unravel_state(h), x)[0])[0]

    rng = np.random.default_rng(3)
    drawn = [rng.normal(size=of.shape) for of in (flat, start, xs[0])]
    pattern = np.asarray(jax.jacrev(after)(*drawn)) != 0
    M, h, total = np.zeros(pattern.shape), start, np.zeros(flat.shape)
    for x in xs:
        whole, of_params = jax.jacrev(after, 1)(flat, h, x), jax.jacrev(after)(flat, h, x)
        new = pattern * (whole @ M + of_params)
        M, h = new, after(flat, h, x)
        total += 2 * np.asarray(h) @ M
    return unravel(total)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_snap1_is_the_masked_matrix_of_gated_cells(name):
    problem = PROBLEMS[name]

    def step(params, state, x):
        state, _ = problem.model.step(params, state, x)
        return state, jax.tree.leaves(state)

    args = arguments(problem, 0, T, 1)
    want = masked_rtrl(step, args.params, jax.tree.map(lambda s: s[0], args.state), args.xs[:, 0])
    _, grads = run(jb.snap1(step, squares), *args[:3], None)
    assert difference(grads, want) <= 1e-12


def test_snap1_is_exact_where_the_jacobian_is_elementwise():
    kind = KINDS["minGRU"]
    params, state, xs = doubled(kind.arguments())
    _, grads = run(jb.snap1(kind.step, squares), params, state, xs, None)
    assert difference(grads, jb.reference.bptt(kind.step, squares)(params, state, xs, None)[1]) <= 1e-12


# e-prop.


def stopped_gru(params, h, x):
    from_x, from_h = params["W_ih"] @ x + params["b_ih"], params["W_hh"] @ sg(h) + params["b_hh"]
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(from_x, 3), jnp.split(from_h, 3)
    z = jax.nn.sigmoid(x_z + h_z)
    h = (1 - z) * jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n) + z * h
    return h, params["C"] @ h


def lif(stop, params, state, x):
    v, z = state
    v = 0.9 * v * (1 - z) + params["A"] @ stop(z) + params["B"] @ x
    z = spike(v - 1)
    return (v, z), params["C"] @ z


def gated_before_its_product(stop, params, h, x):
    gate = jax.nn.sigmoid(params["R"] @ stop(h) + params["B"] @ x)
    h = 0.5 * h + jnp.tanh(params["A"] @ (gate * stop(h)))
    return h, params["C"] @ h


def two_layers(stop, params, state, x):
    first, second = state
    first = jnp.tanh(0.5 * first + params["A"] @ stop(first) + params["B"] @ x)
    read = jnp.tanh(0.5 * stop(state[0]) + params["A"] @ stop(state[0]) + params["B"] @ x)
    second = jnp.tanh(0.5 * second + params["R"] @ read)
    return (first, second), params["C"] @ second


def as_it_is(a):
    return a


SQUARE = {"A": (H, H), "R": (H, H), "B": (H, I), "C": (O, H)}
STOPPED = {
    "elman": (
        PROBLEMS["elman"].model.step,
        lambda p, h, x: (lambda h: (h, p["C"] @ h))(jnp.tanh(p["A"] @ sg(h) + p["B"] @ x)),
        {name: SQUARE[name] for name in "ABC"},
        1,
    ),
    "gru": (
        PROBLEMS["gru"].model.step,
        stopped_gru,
        {"W_ih": (3 * H, I), "W_hh": (3 * H, H), "b_ih": (3 * H,), "b_hh": (3 * H,), "C": (O, H)},
        1,
    ),
    "spikes": (*(functools.partial(lif, stop) for stop in (as_it_is, sg)), SQUARE, 2),
    "gated before its product": (
        *(functools.partial(gated_before_its_product, stop) for stop in (as_it_is, sg)),
        SQUARE,
        1,
    ),
    "two layers": (*(functools.partial(two_layers, stop) for stop in (as_it_is, sg)), SQUARE, 2),
}


@pytest.mark.parametrize("name", STOPPED)
def test_eprop_is_exact_of_the_step_whose_products_read_a_stopped_state(name):
    step, stopped, shapes, leaves = STOPPED[name]
    random = np.random.default_rng(0)
    params = {key: random.normal(size=shape) for key, shape in shapes.items()}
    state = tuple(random.normal(size=(B, H)) for _ in range(leaves)) if leaves > 1 else random.normal(size=(B, H))
    xs, targets = random.normal(size=(T, B, I)), random.normal(size=(T, B, O))
    want = jb.reference.bptt(stopped, jb.losses.squared_error)(params, state, xs, targets)
    (loss, carry), grads = run(jb.eprop(step, jb.losses.squared_error), params, state, xs, targets)
    assert difference(((loss, carry.state), grads), want) <= 1e-12
    exact = jb.reference.bptt(step, jb.losses.squared_error)(params, state, xs, targets)
    assert difference((loss, carry.state), exact[0]) <= 1e-12
    assert difference(grads, exact[1]) > 1e-3


# As a user calls them.


def test_a_batch_divided_among_devices():
    problem = PROBLEMS["gru"]
    args = arguments(problem, 0, T, 4)
    init, gradient = jb.rtrl(problem.model, problem.loss, reduction="mean")
    carry = init(args.params, args.state, args.xs)
    want = jax.jit(gradient)(args.params, carry, args.xs, args.targets)
    got = jax.jit(jb.data_parallel(gradient))(args.params, carry, args.xs, args.targets)
    assert difference(got, want) <= 1e-12


def test_a_step_without_inputs_is_laid_out_at_once():
    def step(params, h, _):
        h = jnp.sin(params * h)
        return h, h

    init, gradient = jb.rtrl(step, squares)
    params, state = np.linspace(0.5, 1, 4), np.ones((B, 4))
    carry = init(params, state)
    assert carry.influence is not None
    _, grads = gradient(params, carry, length=5)
    assert difference(grads, jb.reference.bptt(step, squares)(params, state, length=5)[1]) <= 1e-12


def test_empty_leaves():
    def step(params, state, x):
        h, empty = state
        h = params["a"] * h + x.sum()
        return (h, 0.9 * empty + params["W"] @ x), h

    params = {"a": np.linspace(0.1, 0.9, 4), "W": np.ones((0, I))}
    args = params, (np.ones((B, 4)), np.ones((B, 0))), np.random.default_rng(0).normal(size=(T, B, I)), None
    _, grads = run(jb.rtrl(step, squares), *args)
    assert difference(grads["a"], jb.reference.bptt(step, squares)(*args)[1]["a"]) <= 1e-12


def test_results_of_side_effects_are_refused():
    def step(params, h, x):
        told = jax.experimental.io_callback(lambda: np.ones(()), jax.ShapeDtypeStruct((), float))
        h = params * h * told + x
        return h, h

    init, gradient = jb.rtrl(step, squares)
    xs = np.ones((T, B, 3))
    with pytest.raises(ValueError, match="model: found a step that reads results of side effects"):
        gradient(np.ones(3), init(np.ones(3), np.ones((B, 3)), xs), xs)


ELMAN = PROBLEMS["elman"]
ARGS = arguments(ELMAN, 0, T, B)


def called(carry=None, params=ARGS.params, **more):
    init, gradient = jb.rtrl(ELMAN.model, ELMAN.loss, **more)
    carry = init(params, ARGS.state, ARGS.xs) if carry is None else carry
    return gradient(params, carry, ARGS.xs, ARGS.targets)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jb.rtrl(ELMAN.model, None), TypeError, "loss: found None"),
        (lambda: jb.snap1("no", ELMAN.loss), TypeError, "model: found str"),
        (lambda: jb.eprop(ELMAN.model, ELMAN.loss, reduction="all"), ValueError, "reduction: found 'all'"),
        (lambda: jb.rtrl(ELMAN.model, ELMAN.loss, memory=0), ValueError, "memory: found 0, expected at least 1"),
        (
            lambda: called(memory=100),
            ValueError,
            f"memory: found 100, expected at least {8 * B * H * H * (H + I)} bytes",
        ),
        (lambda: called(ARGS.state), TypeError, "carry: found an array of shape"),
        (lambda: jb.rtrl(ELMAN.model, squares).init(ARGS.params, 1.0), ValueError, "state: found"),
        (lambda: jb.rtrl(ELMAN.model, squares).init({"A": np.ones(3, int)}, ARGS.state), TypeError, "argnums: found 0"),
        (
            lambda: called(jb.rtrl(PROBLEMS["gru"].model, squares).init(PROBLEMS["gru"].params, ARGS.state, ARGS.xs)),
            TypeError,
            "carry.influence: found structure",
        ),
        (
            lambda: called(jb.snap1(ELMAN.model, squares).init(ARGS.params, ARGS.state, ARGS.xs)),
            ValueError,
            "carry.influence: found shape",
        ),
        (
            lambda: called(params=ARGS.params | {"A": np.ones((H, H), int)}),
            TypeError,
            r"argnums: found 0, which asks for the gradient with respect to params, but params\['A'\] has dtype int64",
        ),
        (
            lambda: jb.rtrl(ELMAN.model, squares).init(ARGS.params, ARGS.state[:2], ARGS.xs),
            ValueError,
            "state: found a batch of 2",
        ),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
