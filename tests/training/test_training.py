import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb
from jax_bptt.training import Stream

T, B = 100, 2
OPTIMIZERS = {"momentum": optax.sgd(0.02, momentum=0.9), "adam": optax.adam(0.01)}


@functools.cache
def reference(name, steps, burn_in, reduction):
    """Loss and gradient of a window of so many steps, and its states."""
    problem = PROBLEMS[name]
    gradient = jb.reference.bptt(problem.model, problem.loss, burn_in=burn_in, reduction=reduction)

    @jax.jit
    def both(params, state, xs, targets, mask, reset):
        def step(state, x_and_reset):
            x, reset = x_and_reset
            zeros = jax.tree.map(jnp.zeros_like, state)
            state = jax.tree.map(lambda z, s: jax.vmap(jnp.where)(reset, z, s), zeros, state)
            run = getattr(problem.model, "step", problem.model)
            state, _ = jax.vmap(run, in_axes=(None, 0, 0))(params, state, x)
            return state, state

        _, states = jax.lax.scan(step, state, (xs, reset))
        return gradient(params, state, xs, targets, mask=mask, reset=reset), states

    return both


def by_hand(name, optimizer, k1, k2, args, mask, reset, losses="newest", burn_in=0, reduction="sum"):
    """Online training as a Python loop over windows of one stream, with gradients of `jax.grad`."""
    params, state, xs, targets = args
    opt_state, start, s, values = optimizer.init(params), state, 0, []
    for e in range(k1, len(mask) + 1, k1):
        begin = max(0, e - k2)
        counted = np.arange(s, e) >= {"newest": e - k1, "all": begin, "last": e - 1}[losses]
        window = jax.tree.map(lambda a, s=s, e=e: a[s:e], (xs, targets, mask, reset))
        both = reference(name, e - s, begin - s, reduction)
        ((value, _), grads), states = both(params, start, *window[:2], window[2] * counted[:, None], window[3])
        s, before = max(0, e + k1 - max(k1, k2 + burn_in)), s
        if s > before:
            start = jax.tree.map(lambda a, i=s - before - 1: a[i], states)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        values.append(value)
    return params, start, np.stack(values)


def in_chunks(update, train_state, chunks):
    metrics = []
    for chunk in chunks:
        train_state, more = update(train_state, *chunk[:2], mask=chunk[2], reset=chunk[3])
        metrics.append(more)
    return train_state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *metrics)


@pytest.mark.parametrize(
    ("optimizer", "k1", "k2", "options"),
    [
        ("momentum", 2, 2, {}),
        ("adam", 2, 2, {}),
        ("adam", 2, 5, {}),
        ("momentum", 2, 5, {}),
        ("momentum", 2, 4, {"burn_in": 3}),
        ("adam", 2, 3, {"burn_in": 1, "losses": "all", "reduction": "mean"}),
        ("momentum", 2, 7, {"losses": "last"}),
        ("adam", 2, 1, {"losses": "all"}),
        ("momentum", 2, 1, {"losses": "last", "burn_in": 3}),
        ("adam", 2, 2, {"losses": "last"}),
    ],
)
def test_online_equals_a_loop_with_reference_gradients(optimizer, k1, k2, options):
    name, rng = "elman", np.random.default_rng(k2)
    args = arguments(PROBLEMS[name], 1, T, B)
    mask, reset = rng.integers(0, 3, size=(T, B)).astype(float), rng.uniform(size=(T, B)) < 0.1
    optimizer = OPTIMIZERS[optimizer]
    want = by_hand(name, optimizer, k1, k2, args, mask, reset, **options)
    init, update = jb.training.train_online(PROBLEMS[name].model, PROBLEMS[name].loss, optimizer, k1, k2, **options)
    update, begin = jax.jit(update), init(args.params, args.state, args.xs, args.targets)
    chunks = [
        jax.tree.map(lambda a, k=k: a[k : k + T // 5], (args.xs, args.targets, mask, reset))
        for k in range(0, T, T // 5)
    ]
    end, metrics = in_chunks(update, begin, chunks)
    state = end.carry.state if isinstance(end.carry, Stream) else end.carry
    assert difference((end.params, state, metrics.loss), want) <= 1e-10
    assert int(end.step) == len(metrics.loss) == T // k1 == 50
    assert metrics.finite.all()
    whole, _ = update(begin, args.xs, args.targets, mask=mask, reset=reset)
    assert difference(whole.params, end.params) <= 1e-13


def test_a_window_that_begins_in_the_burn_in_of_the_next_is_stored_there():
    # k1 = 1 and burn_in = 3: the state to store lies among the steps without credit; k2 = 1 leaves one step with it.
    args = arguments(PROBLEMS["gru"], 2, 12, B)
    optimizer = OPTIMIZERS["adam"]
    want = by_hand("gru", optimizer, 1, 1, args, np.ones((12, B)), np.zeros((12, B), bool), burn_in=3)
    init, update = jb.training.train_online(PROBLEMS["gru"].model, PROBLEMS["gru"].loss, optimizer, 1, 1, burn_in=3)
    begin = init(args.params, args.state, args.xs, args.targets)
    end, metrics = jax.jit(update)(begin, args.xs, args.targets)
    assert difference((end.params, end.carry.state, metrics.loss), want) <= 1e-10


def test_inputs_before_the_stream_begins_are_never_looked_at():
    def step(params, h, x):  # not finite for inputs of zero
        h = jnp.tanh(params["A"] @ h + jnp.log(x).sum())
        return h, params["C"] @ h

    params = {name: jnp.asarray(PROBLEMS["elman"].params[name]) for name in "AC"}
    rng = np.random.default_rng(0)
    xs, targets = rng.uniform(1, 2, size=(8, B, 3)), rng.normal(size=(8, B, 2))
    optimizer = optax.sgd(0.1)
    init, update = jb.training.train_online(step, jb.losses.squared_error, optimizer, 2, 6)
    end, metrics = update(init(params, jnp.zeros((B, 4)), xs, targets), xs, targets)
    assert metrics.finite.all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(end.params))


@pytest.mark.parametrize("make", ["bptt", "truncated_bptt", "reference"])
def test_train_step_is_the_loop_that_a_user_would_write(make):
    model, loss = PROBLEMS["lstm"].model, PROBLEMS["lstm"].loss
    gradient = {
        "bptt": jb.bptt(model, loss),
        "truncated_bptt": jb.truncated_bptt(model, loss, 2, 4),
        "reference": jb.reference.bptt(model, loss),
    }[make]
    args, optimizer = (
        arguments(PROBLEMS["lstm"], 1, 6, B),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
    )
    mask, reset = np.arange(6) > 0, np.arange(6) == 4
    update = jax.jit(jb.training.train_step(gradient, optimizer))
    train_state = jb.training.init(args.params, optimizer, args.state)
    params, opt_state, state = args.params, optimizer.init(args.params), args.state
    for _ in range(3):
        train_state, metrics = update(train_state, args.xs, args.targets, mask=mask, reset=reset)
        (value, state), grads = jax.jit(gradient)(params, state, args.xs, args.targets, mask=mask, reset=reset)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        assert difference(metrics[:3], (value, optax.tree.norm(grads), optax.tree.norm(updates))) <= 1e-13
    assert difference(train_state[:3], (params, opt_state, state)) <= 1e-13
    assert (int(train_state.step), bool(metrics.finite), int(metrics.skipped)) == (3, True, 0)


def test_any_function_like_value_and_grad_can_be_trained_with():
    def objective(params, state, xs, targets):
        return ((params[None] * xs.sum(0) - targets.sum(0)) ** 2).sum(), state

    optimizer = optax.sgd(0.01)
    update = jb.training.train_step(jax.value_and_grad(objective, has_aux=True), optimizer)
    train_state = jb.training.init(jnp.ones(3), optimizer, jnp.zeros((2, 1)))
    xs = np.ones((4, 2, 3))
    new, metrics = update(train_state, xs, xs)
    assert float(metrics.loss) == 0
    np.testing.assert_array_equal(new.params, train_state.params)


def spoilt(args, at):
    xs = args.xs.copy()
    xs[at] = np.nan
    return args._replace(xs=xs)


def test_what_is_the_same_of_all_chunks_is_given_beforehand():
    """How many steps there are of a step without inputs, h_t = a h_{t−1}, and a loss without targets, h_t²."""
    gradient = jb.bptt(lambda a, h, _: (a * h, a * h), lambda output, _: output**2)
    update = jb.training.train_step(functools.partial(gradient, length=5), optax.sgd(0.01))
    trained, metrics = update(jb.training.init(0.9, optax.sgd(0.01), np.ones(3)), None, None)
    t = np.arange(1, 6)
    np.testing.assert_allclose(metrics.loss, 3 * np.sum(0.9 ** (2 * t)), rtol=1e-12)
    np.testing.assert_allclose(trained.params, 0.9 - 0.01 * 3 * np.sum(2 * t * 0.9 ** (2 * t - 1)), rtol=1e-12)
    np.testing.assert_allclose(trained.carry, 0.9**5, rtol=1e-12)


def test_an_update_that_is_not_finite_is_skipped_on_request():
    problem, optimizer = PROBLEMS["elman"], OPTIMIZERS["adam"]
    args = arguments(problem, 1, 6, B)
    bad = spoilt(args, 3)
    gradient = jb.bptt(problem.model, problem.loss)
    begin = jb.training.init(args.params, optimizer, args.state)
    skipping = jax.jit(jb.training.train_step(gradient, optimizer, skip_nonfinite=True))
    kept, metrics = skipping(begin, bad.xs, bad.targets)
    assert (bool(metrics.finite), int(metrics.skipped), float(metrics.update_norm)) == (False, 1, 0)
    jax.tree.map(np.testing.assert_array_equal, kept[:3], begin[:3])
    assert int(kept.step) == 1
    want = jax.jit(jb.training.train_step(gradient, optimizer))
    for good in (kept, begin):
        new, metrics = skipping(good, args.xs, args.targets)
        assert difference(new[:3], want(begin, args.xs, args.targets)[0][:3]) == 0
        assert (bool(metrics.finite), int(metrics.skipped)) == (True, 0)
    spread, metrics = want(begin, bad.xs, bad.targets)
    assert not metrics.finite
    assert np.isnan(spread.params["A"]).all()


def test_a_state_that_is_finite_is_carried_on_though_the_update_is_skipped():
    problem, optimizer = PROBLEMS["elman"], OPTIMIZERS["momentum"]
    args = arguments(problem, 1, 6, B)
    targets = args.targets.copy()
    targets[2] = np.inf
    begin = jb.training.init(args.params, optimizer, args.state)
    gradient = jb.bptt(problem.model, problem.loss)
    kept, metrics = jb.training.train_step(gradient, optimizer, skip_nonfinite=True)(begin, args.xs, targets)
    assert int(metrics.skipped) == 1
    (_, state), _ = gradient(*args)
    assert difference(kept.carry, state) <= 1e-14
    assert difference(kept.params, begin.params) == 0


def test_online_training_skips_the_windows_that_reach_what_is_not_finite():
    problem, optimizer = PROBLEMS["elman"], OPTIMIZERS["momentum"]
    args = arguments(problem, 1, 12, B)
    mask, targets = np.ones(12), args.targets.copy()
    targets[5] = np.inf
    init, update = jb.training.train_online(problem.model, problem.loss, optimizer, 2, 2, skip_nonfinite=True)
    _, metrics = jax.jit(update)(init(args.params, args.state), args.xs, targets, mask=mask)
    assert metrics.skipped.tolist() == [0, 0, 1, 0, 0, 0]


# As users run it.


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 8)])
def test_an_epoch_is_one_compiled_call_with_donated_buffers(k1, k2):
    problem, optimizer = PROBLEMS["gru"], OPTIMIZERS["adam"]
    args = arguments(problem, 1, 24, B)
    traced = []

    def counted(params, state, x):
        traced.append(None)
        return problem.model.step(params, state, x)

    init, update = jb.training.train_online(counted, problem.loss, optimizer, k1, k2)
    epoch = jax.jit(update, donate_argnums=0)
    first = init(args.params, args.state, args.xs, args.targets)
    second, _ = epoch(first, args.xs, args.targets)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    count = len(traced)
    third, _ = epoch(second, args.xs, args.targets)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(second))
    assert len(traced) == count > 0
    assert int(third.step) == 12


def test_init_copies_what_it_is_given():
    params, carry = {"w": jnp.ones(3)}, (jnp.zeros((2, 1)),) * 2
    train_state = jb.training.init(params, optax.sgd(0.1), carry)
    leaves = jax.tree.leaves((train_state.params, train_state.carry))
    assert len({leaf.unsafe_buffer_pointer() for leaf in [*leaves, params["w"], carry[0]]}) == 5


def test_updates_scan_over_chunks():
    problem, optimizer = PROBLEMS["elman"], OPTIMIZERS["adam"]
    args = arguments(problem, 1, 12, B)
    update = jb.training.train_step(jb.bptt(problem.model, problem.loss), optimizer)
    begin = jb.training.init(args.params, optimizer, args.state)
    chunks = jax.tree.map(lambda a: a.reshape(3, 4, *a.shape[1:]), (args.xs, args.targets))
    scanned, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, chunk: update(s, *chunk), s, chunks))(begin)
    online = jb.training.train_online(problem.model, problem.loss, optimizer, 4, 4)
    other, by_window = jax.jit(online.update)(online.init(args.params, args.state), args.xs, args.targets)
    assert difference((scanned[:3], metrics.loss), (other[:3], by_window.loss)) <= 1e-13


def test_accumulation_clipping_and_schedules_are_those_of_optax():
    problem = PROBLEMS["elman"]
    args = arguments(problem, 1, 8, B, "float32")  # as optax accumulates
    rate = optax.linear_schedule(0.1, 0.0, 3)
    inner = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(rate))
    optimizer = optax.MultiSteps(inner, 2).gradient_transformation()
    gradient = jb.bptt(problem.model, problem.loss)
    update = jax.jit(jb.training.train_step(gradient, optimizer))
    train_state = jb.training.init(args.params, optimizer, args.state)
    norms, params, state = [], args.params, args.state
    for i in range(4):
        (_, state), grads = gradient(params, state, args.xs, args.targets)
        train_state, metrics = update(train_state, args.xs, args.targets)
        norms.append(float(metrics.update_norm))
        if i % 2 == 0:
            summed = grads
        else:
            mean = jax.tree.map(lambda a, b: (a + b) / 2, summed, grads)
            scale = min(1, 0.1 / float(optax.tree.norm(mean))) * float(rate(i // 2))
            params = jax.tree.map(lambda p, g, scale=scale: p - scale * g, params, mean)
    assert norms[0] == norms[2] == 0 < norms[3] < norms[1]
    assert difference(train_state.params, params) <= 5e-6


# Evaluation.


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["lstm", "nested", "elman"])
def test_evaluation_is_the_loss_of_the_gradient_functions(name, reduction):
    problem = PROBLEMS[name]
    args = arguments(problem, 1, 23, B)
    call = {"mask": np.arange(23) % 3, "reset": np.arange(23) == 11}
    want = jb.reference.bptt(problem.model, problem.loss, reduction=reduction)(*args, **call)[0]
    for window in (None, 5, 40):
        evaluate = jb.training.evaluate(problem.model, problem.loss, reduction=reduction, window=window)
        assert difference(jax.jit(evaluate)(*args, **call), want) <= 1e-12


def test_evaluation_takes_memory_that_does_not_grow_with_the_sequence():
    cell = jb.cells.gru(8, 32, 8)
    evaluate = jax.jit(jb.training.evaluate(cell, jb.losses.squared_error))
    params, state = cell.init(jax.random.key(0)), cell.initial_state(4)

    def temporary(T):
        xs = jax.ShapeDtypeStruct((T, 4, 8), jnp.float32)
        return evaluate.lower(params, state, xs, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16_384) <= temporary(1024) + 4096


def test_evaluation_of_accuracy():
    problem = PROBLEMS["lstm"]
    args = arguments(problem, 1, 7, B)

    def right(output, target):
        return jnp.asarray(output.argmax() == target, float)

    accuracy, _ = jb.training.evaluate(problem.model, right)(*args)
    _, outputs = jb.unroll(problem.model, *args[:3])
    assert float(accuracy) == pytest.approx(np.mean(outputs.argmax(-1) == args.targets))


# Bad input.

ARGS = arguments(PROBLEMS["elman"], 1, 6, B)
MODEL, LOSS, SGD = PROBLEMS["elman"].model, PROBLEMS["elman"].loss, optax.sgd(0.1)


def begin(k1, k2, *chunk):
    """What online training of these begins with."""
    return jb.training.train_online(MODEL, LOSS, SGD, k1, k2).init(ARGS.params, ARGS.state, *chunk)


CHUNK = ARGS.xs, ARGS.targets


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jb.training.init(ARGS.params, (lambda p: p, lambda g: g), ARGS.state), TypeError, "optimizer: found"),
        (
            lambda: jb.training.train_step(jb.bptt(MODEL, LOSS), optax.sgd),
            TypeError,
            "optimizer: found the function sgd",
        ),
        (lambda: jb.training.train_online(MODEL, LOSS, "adam", 2, 2), TypeError, "optimizer: found 'adam' of type str"),
        (lambda: jb.training.train_step(3, SGD), TypeError, "gradient: found 3 of type int, expected a function"),
        (lambda: begin(2, 4), TypeError, "xs: found None, expected those of a chunk, since k2 .* is more than k1"),
        (lambda: begin(2, 5, np.ones(3), ARGS.targets), ValueError, r"xs: found shape \(3,\), expected \[T, B, …\]"),
        (lambda: jb.training.train_online(MODEL, LOSS, SGD, 4, 2), ValueError, "k2: found 2, expected at least k1 = 4"),
        (lambda: jb.training.train_online(MODEL, LOSS, SGD, 2, 2, burn_in=-1), ValueError, "burn_in: found -1"),
        (lambda: jb.training.train_online(MODEL, LOSS, SGD, 2, 2, save="no"), ValueError, "save: found 'no'"),
        (lambda: jb.training.evaluate(MODEL, LOSS, reduction="max"), ValueError, "reduction: found 'max'"),
        (lambda: jb.training.evaluate(MODEL, LOSS, window=0), ValueError, "window: found 0"),
        (lambda: jb.training.evaluate(MODEL, LOSS)(*ARGS[:3], ARGS.targets[:2]), ValueError, "targets: found 2 time"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("k", "of", "change", "error", "message"),
    [
        ((4, 4), (2, 2), {}, ValueError, "xs: found 6 time steps, expected a multiple of k1 = 4"),
        ((2, 2), (2, 5), {}, TypeError, "train_state.carry: found a Stream, expected a recurrent state"),
        ((2, 5), (2, 2), {}, TypeError, "train_state.carry: found a recurrent state, expected a Stream"),
        ((2, 4), (2, 5), {}, ValueError, "train_state.carry: found a Stream of 3 steps, expected .* = 2"),
        ((2, 5), (2, 5), {"xs": ARGS.xs[..., :2]}, ValueError, r"xs: found shape \(2, 2\), expected \(2, 3\) .* as in"),
        ((2, 5), (2, 5), {"targets": (ARGS.targets,)}, TypeError, "targets: found structure"),
        ((2, 2), (2, 2), {"mask": np.ones(5)}, ValueError, r"mask: found shape \(5,\), expected \[T\] = \(6,\)"),
        ((2, 2), (2, 2), {"xs": ARGS.xs[:, :1]}, ValueError, "state: found a batch of 2"),
    ],
)
def test_bad_calls_of_online_training_are_named(k, of, change, error, message):
    train_state = begin(*of, *CHUNK)
    online = jb.training.train_online(MODEL, lambda output, target: LOSS(output, jax.tree.leaves(target)[0]), SGD, *k)
    with pytest.raises(error, match=message):
        online.update(train_state, **({"xs": ARGS.xs, "targets": ARGS.targets} | change))


def test_a_carry_or_train_state_of_another_kind_is_named():
    update = jb.training.train_step(jb.bptt(MODEL, LOSS), SGD)
    with pytest.raises(TypeError, match=r"train_state: found a value of type dict, expected a TrainState"):
        update(ARGS.params, ARGS.xs, ARGS.targets)
    stream = begin(2, 5, *CHUNK)
    with pytest.raises(TypeError, match=r"train_state.carry: found a Stream, which is for train_online"):
        update(stream, ARGS.xs, ARGS.targets)
    for make in (update, jb.training.train_online(MODEL, LOSS, SGD, 2, 2).update):
        wrong = jb.training.init(ARGS.params, SGD, (ARGS.state,))
        with pytest.raises(TypeError) as caught:
            make(wrong, ARGS.xs, ARGS.targets)
        assert "step(params, state, x) of one example" in "".join(caught.value.__notes__)


# Forwards in time.

MODEL_OF_GRU, LOSS_OF_GRU = PROBLEMS["gru"].model, PROBLEMS["gru"].loss
FORWARDS = {"rtrl": jb.rtrl, "snap1": jb.snap1, "eprop": jb.eprop, "uoro": jb.uoro}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("k1", [1, 3])
def test_online_forwards_is_a_loop_of_updates(name, k1):
    forward, key = FORWARDS[name], {"key": jax.random.key(0)} if name == "uoro" else {}
    random, optimizer = np.random.default_rng(0), OPTIMIZERS["adam"]
    mask, reset = random.integers(0, 3, size=(12, B)).astype(float), random.uniform(size=(12, B)) < 0.2
    args = arguments(PROBLEMS["gru"], 1, 12, B)
    init, gradient = forward(MODEL_OF_GRU, LOSS_OF_GRU, reduction="mean")
    gradient = jax.jit(gradient)
    params, carry, losses = args.params, init(args.params, args.state, **key), []
    opt_state = optimizer.init(params)
    for t in range(0, 12, k1):
        xs, targets, m, r = jax.tree.map(lambda a, t=t: a[t : t + k1], (args.xs, args.targets, mask, reset))
        (loss, carry), grads = gradient(params, carry, xs, targets, mask=m, reset=r)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params, losses = optax.apply_updates(params, updates), [*losses, loss]
    online = jb.training.train_online(MODEL_OF_GRU, LOSS_OF_GRU, optimizer, k1, reduction="mean", forward=forward)
    begin = online.init(args.params, args.state, **key)
    end, metrics = jax.jit(online.update)(begin, args.xs, args.targets, mask=mask, reset=reset)
    assert difference((end.params, end.carry, metrics.loss), (params, carry, np.array(losses))) <= 1e-12
    assert int(end.step) == 12 // k1


def test_online_forwards_goes_on_from_chunk_to_chunk():
    args = arguments(PROBLEMS["gru"], 1, 12, B)
    online = jb.training.train_online(MODEL_OF_GRU, LOSS_OF_GRU, OPTIMIZERS["adam"], 1, forward=jb.rtrl)
    begin = online.init(args.params, args.state, args.xs)
    whole, _ = jax.jit(online.update)(begin, args.xs, args.targets)
    chunks = jax.tree.map(lambda a: a.reshape(3, 4, *a.shape[1:]), (args.xs, args.targets))
    end, metrics = jax.lax.scan(lambda state, chunk: online.update(state, *chunk), begin, chunks)
    assert difference(end, whole) <= 1e-13
    assert metrics.loss.shape == (3, 4)


def two_lags(seed, steps, batch):
    """Bits; the target is 0.5 + 0.5·(the one three steps ago) − 0.25·(the one eight steps ago)."""
    bits = np.random.default_rng(seed).integers(0, 2, size=(steps + 8, batch)).astype(float)
    return bits[8:, :, None], (0.5 + 0.5 * bits[5:-3] - 0.25 * bits[:-8])[..., None]


@pytest.mark.parametrize(("name", "left"), [("rtrl", 0.1), ("snap1", 0.4), ("eprop", 0.4), ("uoro", 0.4)])
def test_forward_methods_train_online_on_two_lags(name, left):
    """An update at every step; of the loss without memory at most so much is left."""
    model, random = jb.cells.elman(1, 16, 1, bias=True, output_bias=True), np.random.default_rng(0)
    params = model.init(jax.random.key(0))
    params = params | {"A": 0.9 * np.linalg.qr(random.normal(size=(16, 16)))[0]}
    params = jax.tree.map(lambda a: jnp.asarray(a, "float64"), params)
    loss, key = jb.losses.squared_error, {"key": jax.random.key(1)} if name == "uoro" else {}
    online = jb.training.train_online(model, loss, optax.adam(3e-3), 1, reduction="mean", forward=FORWARDS[name])
    xs, targets = two_lags(0, 3000, 8)
    _, metrics = jax.jit(online.update)(online.init(params, np.zeros((8, 16)), xs, **key), xs, targets)
    assert metrics.loss[-300:].mean() < left * targets.var() / 2 < metrics.loss[:10].mean()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k2": 4}, ValueError, "k2: found 4, expected None with `forward`"),
        ({"burn_in": 1}, ValueError, "burn_in: found 1, expected 0 with `forward`"),
        ({"losses": "all"}, ValueError, "losses: found 'all', expected 'newest' with `forward`"),
        ({"save": "dots"}, ValueError, "save: found 'dots', expected None with `forward`"),
        ({"forward": "rtrl"}, TypeError, "forward: found 'rtrl' of type str, expected a function"),
        ({"k1": 0}, ValueError, "k1: found 0"),
        ({"forward": None}, TypeError, "k2: found None"),
    ],
)
def test_bad_options_of_online_forwards_are_named(options, error, message):
    with pytest.raises(error, match=message):
        jb.training.train_online(MODEL, LOSS, SGD, **({"k1": 2, "forward": jb.rtrl} | options))


def test_bad_calls_of_online_forwards_are_named():
    online = jb.training.train_online(MODEL, LOSS, SGD, 4, forward=jb.rtrl)
    begin = online.init(ARGS.params, ARGS.state)
    for steps in (6, 0):
        with pytest.raises(ValueError, match=r"xs: found .*expected \[T, …\], of a multiple T of k1 = 4"):
            online.update(begin, ARGS.xs[:steps], ARGS.targets[:steps])
    with pytest.raises(ValueError, match="key: found"):
        jb.training.train_online(MODEL, LOSS, SGD, 4, 4).init(ARGS.params, ARGS.state, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"key: found .* expected None: nothing is drawn by this gradient"):
        online.init(ARGS.params, ARGS.state, key=jax.random.key(0))
    with pytest.raises(TypeError, match="key: found None"):
        jb.training.train_online(MODEL, LOSS, SGD, 4, forward=jb.uoro).init(ARGS.params, ARGS.state)
