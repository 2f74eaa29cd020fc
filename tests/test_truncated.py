import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import PROBLEMS, arguments, check_close, difference

import jax_bptt as jb

ARGNUMS = [0, (0, 1), (0, 1, 2)]


@functools.cache
def compiled(make, name, *args, **options):
    """Shared by all cases of the same options; compiled programs take memory maps and are dropped now and then."""
    if next(_programs) % 100 == 99:
        jax.clear_caches()
    return jax.jit(make(PROBLEMS[name].model, PROBLEMS[name].loss, *args, **options))


_programs = itertools.count()


def oracle(name, args, k1, k2, mask=None, reduction="sum", **options):
    """The oracle's answer in float64."""
    problem = PROBLEMS[name]
    wide = jax.tree.map(lambda a: a if a.dtype.kind == "i" else a.astype("float64"), args)
    T, B = jax.tree.leaves(args.xs)[0].shape[:2]
    weights = np.ones((T, B)) if mask is None else np.broadcast_to(mask.reshape(T, -1), (T, B)).astype("float64")
    return oracles.truncated(problem.oracle, problem.oracle_loss, *wide, weights, reduction, k1, k2, **options)


def pick(grads, argnums):
    return grads[argnums] if isinstance(argnums, int) else tuple(grads[n] for n in argnums)


@st.composite
def cases(draw):
    T = draw(st.integers(1, 24))
    B = draw(st.integers(1, 4))
    losses = draw(st.sampled_from(["newest", "all", "last"]))
    k1 = draw(st.integers(1, T + 3))
    k2 = draw(st.just(k1) | st.integers(k1 if losses == "newest" else 1, max(k1, T + 3)))
    burn_in = draw(st.integers(0, T - 1)) if draw(st.booleans()) else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = {None: None, "time": rng.uniform(size=T), "time and batch": rng.integers(0, 3, size=(T, B))}[
        draw(st.sampled_from([None, "time", "time and batch"]))
    ]
    reset = rng.uniform(size=(T, B)) < 0.3 if draw(st.booleans()) else None
    options = {
        "losses": losses,
        "burn_in": burn_in,
        "reduction": draw(st.sampled_from(["sum", "mean"])),
        "argnums": draw(st.sampled_from(ARGNUMS)),
        "save": draw(st.sampled_from(["dots", "states", "boundaries"])),
        "parallel": draw(st.sampled_from([None, 1, 2, 5])),
    }
    name = draw(st.sampled_from(["elman", "lstm", "nested"]))
    dtype = draw(st.sampled_from(["float64", "float32"]))
    args = arguments(PROBLEMS[name], int(rng.integers(2**32)), T, B, dtype)
    reset_state = None
    if reset is not None and draw(st.booleans()):
        reset_state = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), args.state)
    return name, args, (k1, k2), {"mask": mask, "reset": reset, "reset_state": reset_state}, options, dtype


@hypothesis.given(cases())
def test_equals_the_oracle(case):
    name, args, (k1, k2), call, options, dtype = case
    by_oracle = {key: options[key] for key in ("losses", "burn_in", "reduction")}
    (loss, state), grads, _, _ = oracle(name, args, k1, k2, **call, **by_oracle)
    got = compiled(jb.truncated_bptt, name, k1, k2, **options)(*args, **call)
    check_close(got, ((loss, state), pick(grads, options["argnums"])), dtype)


@pytest.mark.parametrize("losses", ["newest", "all", "last"])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (2, 5), (3, 3), (4, 6), (9, 12)])
def test_the_reference_equals_the_oracle(k1, k2, losses):
    args = arguments(PROBLEMS["elman"], 1, 9, 2)
    rng = np.random.default_rng(k2)
    call = {"mask": rng.integers(0, 3, size=(9, 2)), "reset": rng.uniform(size=(9, 2)) < 0.3}
    options = {"losses": losses, "burn_in": 2, "reduction": "mean"}
    (loss, state), grads, _, _ = oracle("elman", args, k1, k2, **call, **options)
    got = compiled(jb.reference.truncated_bptt, "elman", k1, k2, argnums=(0, 1, 2), **options)(*args, **call)
    assert difference(got, ((loss, state), grads)) <= 1e-12


@pytest.mark.parametrize("name", ["gru", "stack"])
def test_other_cells_equal_the_reference(name):
    args = arguments(PROBLEMS[name], 2, 11, 2)
    for k1, k2 in ((3, 7), (4, 4)):
        got = compiled(jb.truncated_bptt, name, k1, k2, argnums=(0, 1, 2))(*args)
        want = compiled(jb.reference.truncated_bptt, name, k1, k2, argnums=(0, 1, 2))(*args)
        assert difference(got, want) <= 1e-12


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
@hypothesis.settings(max_examples=12)
def test_exact_gradients_with_reset_and_burn_in_equal_the_oracle(seed, T, given_state):
    rng = np.random.default_rng(seed)
    args = arguments(PROBLEMS["lstm"], seed, T, 2)
    reset = rng.uniform(size=(T, 2)) < 0.3
    reset_state = jax.tree.map(lambda s: rng.normal(size=s.shape), args.state) if given_state else None
    burn_in = int(rng.integers(T))
    call = {"reset": reset, "reset_state": reset_state}
    (loss, state), grads, _, _ = oracle("lstm", args, T, T, burn_in=burn_in, **call)
    for make, options in (
        (jb.bptt, {"window": 3}),
        (jb.bptt, {"window": 4, "save": "boundaries"}),
        (jb.reference.bptt, {}),
    ):
        got = compiled(make, "lstm", argnums=(0, 1, 2), burn_in=burn_in, **options)(*args, **call)
        assert difference(got, ((loss, state), grads)) <= 1e-12


# Laws.


def test_one_window_over_everything_is_exact():
    args = arguments(PROBLEMS["gru"], 3, 10, 2)
    want = compiled(jb.bptt, "gru", argnums=(0, 1, 2))(*args)
    for k1, k2 in ((10, 10), (10, 13), (1, 10), (3, 12), (12, 12)):
        got = compiled(jb.truncated_bptt, "gru", k1, k2, argnums=(0, 1, 2))(*args)
        assert difference(got, want) <= 1e-12


@pytest.mark.parametrize("losses", ["newest", "all", "last"])
def test_padding_with_masked_steps_changes_nothing(losses):
    T, k1, k2 = 10, 4, 6
    args = arguments(PROBLEMS["elman"], 4, T, 2)
    padded = args._replace(
        **{name: np.pad(getattr(args, name), [(0, 2), (0, 0), (0, 0)], mode="edge") for name in ("xs", "targets")}
    )
    gradient = compiled(jb.truncated_bptt, "elman", k1, k2, losses=losses, reduction="mean", argnums=(0, 1))
    (loss, _), grads = gradient(*args)
    (padded_loss, _), padded_grads = gradient(*padded, mask=np.arange(12) < T)
    assert difference((padded_loss, padded_grads), (loss, grads)) <= 1e-12


def test_equal_k1_and_k2_are_chunks_with_stop_gradient():
    problem, k = PROBLEMS["elman"], 4
    args = arguments(problem, 5, 11, 2)
    step, loss = jax.vmap(problem.model.step, (None, 0, 0)), jax.vmap(problem.loss)

    def chunked(params):
        state, total = args.state, 0.0
        for t, (x, target) in enumerate(zip(args.xs, args.targets, strict=True)):
            state = jax.lax.stop_gradient(state) if t % k == 0 else state
            state, output = step(params, state, x)
            total += loss(output, target).sum()
        return total

    got = compiled(jb.truncated_bptt, "elman", k, k)(*args)[1]
    assert difference(got, jax.grad(chunked)(args.params)) <= 1e-12


def test_k1_of_one_gives_every_loss_a_horizon_of_exactly_k2():
    T, k2 = 9, 4
    args = arguments(PROBLEMS["elman"], 6, T, 1)
    gradient = compiled(jb.truncated_bptt, "elman", 1, k2, argnums=2)
    for t in range(T):
        to_xs = gradient(*args, mask=np.arange(T) == t)[1]
        reached = [s for s in range(T) if np.any(to_xs[s] != 0)]
        assert reached == list(range(max(0, t - k2 + 1), t + 1))


def test_the_sum_of_k_plus_one_terms_equals_its_formula():
    T, k = 9, 3
    args = arguments(PROBLEMS["elman"], 7, T, 2)
    A, B, C = (np.asarray(args.params[name]) for name in "ABC")
    hs = [np.asarray(args.state)]
    for x in args.xs:
        hs.append(np.tanh(hs[-1] @ A.T + x @ B.T))
    credit = [(h @ C.T - y) @ C for h, y in zip(hs[1:], args.targets, strict=True)]
    delta, terms = np.zeros_like(hs[0]), []
    for t in reversed(range(T - k - 1, T)):  # the terms t = T − k … T, steps counted from 1
        delta = delta + credit[t]
        a = delta * (1 - hs[t + 1] ** 2)
        terms.append(a.T @ hs[t])
        delta = a @ A
    assert len(terms) == k + 1
    got = compiled(jb.truncated_bptt, "elman", T, k + 1, losses="all")(*args)[1]
    assert difference(got["A"], sum(terms)) <= 1e-12


@pytest.mark.parametrize(("k1", "k2"), [(1, 3), (2, 6), (3, 7), (5, 2), (4, 20)])
def test_all_counts_each_loss_as_often_as_windows_overlap(k1, k2):
    T = 11
    args = arguments(PROBLEMS["elman"], 8, T, 1)
    counts = [sum(max(0, e - k2) <= t < e for e in range(k1, T + k1, k1)) for t in range(T)]
    values = jax.vmap(PROBLEMS["elman"].loss)
    _, outputs = jb.unroll(PROBLEMS["elman"].model, args.params, args.state, args.xs)
    losses = [values(y, target).sum() for y, target in zip(outputs, args.targets, strict=True)]
    (loss, _), _ = compiled(jb.truncated_bptt, "elman", k1, k2, losses="all")(*args)
    np.testing.assert_allclose(loss, sum(c * v for c, v in zip(counts, losses, strict=True)), rtol=1e-12)
    (mean, _), _ = compiled(jb.truncated_bptt, "elman", k1, k2, losses="all", reduction="mean")(*args)
    np.testing.assert_allclose(mean, loss / sum(counts), rtol=1e-12)


def test_gradients_of_xs_and_state_are_exactly_zero_where_no_credit_arrives():
    T, k1, k2 = 12, 3, 5
    args = arguments(PROBLEMS["lstm"], 9, T, 2)
    gradient = compiled(jb.truncated_bptt, "lstm", k1, k2, argnums=(1, 2))
    for t in range(T):
        to_state, to_xs = gradient(*args, mask=np.arange(T) == t)[1]
        end = (t // k1 + 1) * k1
        start = max(0, end - k2)
        assert [s for s in range(T) if np.any(to_xs[s] != 0)] == list(range(start, t + 1))
        assert all(np.any(leaf != 0) == (start == 0) for leaf in to_state)
    to_state, to_xs = compiled(jb.truncated_bptt, "lstm", k1, k2, argnums=(1, 2), burn_in=4)(*args)[1]
    assert not any(np.any(leaf != 0) for leaf in (*to_state, to_xs[:4]))
    assert np.all(np.any(to_xs[4:] != 0, axis=(1, 2)))


def test_no_credit_crosses_a_reset():
    T = 8
    args = arguments(PROBLEMS["gru"], 10, T, 2)
    reset = np.zeros((T, 2), bool)
    reset[5, 1] = reset[0, 0] = True
    for make, windows in ((jb.bptt, ()), (jb.truncated_bptt, (2, 6)), (jb.reference.truncated_bptt, (2, 6))):
        gradient = compiled(make, "gru", *windows, argnums=(1, 2))
        to_state, to_xs = gradient(*args, mask=np.arange(T) == 5, reset=reset)[1]
        np.testing.assert_array_equal(np.any(to_xs != 0, axis=2)[:, 1], np.arange(T) == 5)
        np.testing.assert_array_equal(to_state[0], 0)
        (_, state), _ = gradient(*args, reset=reset)
        alone = args._replace(state=np.zeros((1, 4)), xs=args.xs[5:, 1:], targets=args.targets[5:, 1:])
        np.testing.assert_allclose(state[1:], compiled(jb.bptt, "gru")(*alone)[0][1], rtol=1e-12)


# Streams.


def test_chunks_of_a_stream_add_up_where_k1_equals_k2():
    args = arguments(PROBLEMS["lstm"], 11, 12, 2)
    gradient = compiled(jb.truncated_bptt, "lstm", 3, 3)
    (loss, end), grads = gradient(*args)
    (first, state), a = gradient(args.params, args.state, args.xs[:6], args.targets[:6])
    (second, state), b = gradient(args.params, state, args.xs[6:], args.targets[6:])
    assert difference((first + second, state, jax.tree.map(jnp.add, a, b)), (loss, end, grads)) <= 1e-12


@pytest.mark.parametrize(("k1", "k2", "context"), [(3, 6, 3), (2, 5, 4), (2, 8, 6), (3, 5, 9), (3, 3, 3)])
@pytest.mark.parametrize("save", ["dots", "states", "boundaries"])
def test_chunks_with_context_add_up(k1, k2, context, save):
    chunk, chunks = 4 * k1, 3
    args = arguments(PROBLEMS["elman"], 12, chunk * chunks, 2)
    options = {"argnums": (0, 2)}
    (loss, _), (grads, to_xs) = compiled(jb.truncated_bptt, "elman", k1, k2, **options)(*args)
    # Before the first chunk there is nothing: what stands there is cut off by a reset to the first state.
    xs, targets = (np.pad(a, [(context, 0), (0, 0), (0, 0)]) for a in (args.xs, args.targets))
    reset = np.arange(len(xs)) == context
    for make in (jb.truncated_bptt, jb.reference.truncated_bptt):
        more = {"save": save} if make is jb.truncated_bptt else {}
        gradient = compiled(make, "elman", k1, k2, context=context, **options, **more)
        whole, state, total, sum_xs = 0.0, args.state, None, np.zeros_like(xs)
        for i in range(chunks):
            steps = slice(i * chunk, (i + 1) * chunk + context)
            call = args.params, state, xs[steps], targets[steps]
            (value, state), (g, x) = gradient(*call, reset=reset[steps], reset_state=args.state)
            whole, total = whole + value, g if total is None else jax.tree.map(jnp.add, total, g)
            sum_xs[steps] += x
        assert difference((whole, total, sum_xs[context:]), (loss, grads, to_xs)) <= 1e-12


@pytest.mark.parametrize("losses", ["newest", "all", "last"])
@pytest.mark.parametrize(("k1", "k2"), [(4, 16), (16, 16), (8, 40), (20, 1000)])
def test_windows_that_all_begin_at_the_outset_cost_no_more_than_the_exact_gradient(losses, k1, k2):
    cell = jb.cells.gru(3, 32, 2)
    shapes = (16, 8, 3), (16, 8, 2)
    args = cell.init(jax.random.key(0)), cell.initial_state(8), *(jnp.ones(shape, "float32") for shape in shapes)

    def compiled(gradient):
        return jax.jit(gradient).lower(*args).compile()

    def unrolled(**options):
        def value(params, state, xs, ys):
            return ((jb.unroll(cell, params, state, xs, **options)[1] - ys) ** 2).sum()

        return jax.grad(value)

    if losses == "newest":
        check_costs_no_more(compiled(unrolled(k1=k1, k2=k2)), compiled(unrolled()))
    exact = compiled(jb.bptt(cell, jb.losses.squared_error))
    check_costs_no_more(compiled(jb.truncated_bptt(cell, jb.losses.squared_error, k1, k2, losses=losses)), exact)


@pytest.mark.parametrize("kind", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("B", [1, 32])
def test_windows_that_meet_take_no_more_memory_than_the_usual_recipes(kind, B):
    T, k = 512, 32
    cell = getattr(jb.cells, kind)(32, 64, 16)
    args = cell.init(jax.random.key(0)), cell.initial_state(B), jnp.ones((T, B, 32)), jnp.ones((T, B, 16))

    def one(params, state, x, y):
        state, output = jax.vmap(cell.step, (None, 0, 0))(params, state, x)
        return state, jax.vmap(jb.losses.squared_error)(output, y).sum()

    def losses_of(params, state, xs, ys):
        state, losses = jax.lax.scan(lambda state, xy: one(params, state, *xy), state, (xs, ys))
        return losses.sum(), state

    def over_windows(params, state, xs, ys):
        def window(state, xy):
            loss, state = losses_of(params, jax.lax.stop_gradient(state), *xy)
            return state, loss

        state, losses = jax.lax.scan(window, state, in_windows((xs, ys)))
        return losses.sum(), state

    def window_by_window(params, state, xs, ys):
        def window(carry, xy):
            (total, state), grads = carry
            (loss, state), more = jax.value_and_grad(losses_of, has_aux=True)(params, state, *xy)
            return ((total + loss, state), jax.tree.map(jnp.add, grads, more)), None

        return jax.lax.scan(
            window, ((jnp.zeros(()), state), jax.tree.map(jnp.zeros_like, params)), in_windows((xs, ys))
        )[0]

    def in_windows(tree):
        return jax.tree.map(lambda a: a.reshape(T // k, k, *a.shape[1:]), tree)

    def memory(gradient):
        return jax.jit(gradient).lower(*args).compile().memory_analysis().temp_size_in_bytes

    def ours(**options):
        return jb.truncated_bptt(cell, jb.losses.squared_error, k, k, **options)

    by_scan = jax.value_and_grad(over_windows, has_aux=True)
    assert difference(jax.jit(ours())(*args), jax.jit(by_scan)(*args)) < 1e-12
    assert difference(jax.jit(ours(parallel=1))(*args), jax.jit(window_by_window)(*args)) < 1e-12
    assert memory(ours()) <= memory(by_scan)
    assert memory(ours(save="boundaries")) <= 1.3 * memory(window_by_window)


def check_costs_no_more(truncated, exact):
    for cost in (lambda of: of.memory_analysis().temp_size_in_bytes, lambda of: of.cost_analysis()["flops"]):
        assert cost(truncated) <= 1.1 * cost(exact)
