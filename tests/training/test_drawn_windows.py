import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb

K1, K2, CUT = 3, 9, 0.4
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _, __: (jax.tree.map(jnp.zeros_like, grads), grads),
)
"""Changes nothing, and keeps the gradient."""


def stream(name="elman", steps=15):
    problem = PROBLEMS[name]
    args = arguments(problem, 2, steps, 2)
    reset = np.random.default_rng(0).uniform(size=(steps, 2)) < 0.1
    return problem, args, reset


def gradients(problem, args, reset, cut, keys, **options):
    """The gradient of every update of a stream of params that stay, for each of the keys."""
    online = jb.training.train_online(problem.model, problem.loss, RECORDER, K1, K2, cut=cut, **options)

    def of_key(key):
        begin = online.init(args.params, args.state, args.xs, args.targets, key=key)

        def one(train_state, steps):
            after, metrics = online.update(train_state, *steps[:2], reset=steps[2])
            return after, (after.opt_state, metrics.loss)

        steps = jax.tree.map(lambda a: a.reshape(-1, K1, *a.shape[1:]), (args.xs, args.targets, reset))
        return jax.lax.scan(one, begin, steps)[1]

    return jax.jit(jax.vmap(of_key))(keys)


def windows(problem, args, reset, **options):
    """The exact gradient of the newest losses of every window, by `jax.grad`, from the state k2 steps before."""
    gradient = jax.jit(jb.reference.bptt(problem.model, problem.loss, **options))
    made = []
    for end in range(K1, len(reset) + 1, K1):
        start = max(0, end - K2)
        state = args.state
        if start:
            (_, state), _ = gradient(args.params, state, args.xs[:start], args.targets[:start], reset=reset[:start])
        mask = np.arange(start, end) >= end - K1
        of_window = args.xs[start:end], args.targets[start:end], mask
        made.append(gradient(args.params, state, *of_window, reset=reset[start:end]))
    return made


def test_nothing_cut_is_the_whole_window():
    problem, args, reset = stream("gru")
    grads, losses = gradients(problem, args, reset, 0.0, jax.random.split(jax.random.key(0), 1), reduction="mean")
    for i, ((loss, _), want) in enumerate(windows(problem, args, reset, reduction="mean")):
        assert difference(jax.tree.map(lambda a, i=i: a[0, i], grads), want) < 1e-12
        assert abs(losses[0, i] - loss) < 1e-12


@pytest.mark.parametrize("cut", [CUT, (0.2, 0.6)])
def test_right_on_average(cut):
    keys = 20_000
    problem, args, reset = stream()
    grads, _ = gradients(problem, args, reset, cut, jax.random.split(jax.random.key(1), keys))
    for i, (_, want) in enumerate(windows(problem, args, reset)):
        for many, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
            estimates = np.asarray(many[:, i])
            error = estimates.std(axis=0) / np.sqrt(keys) + 1e-12 * np.abs(estimates).max()
            assert (np.abs(estimates.mean(axis=0) - np.asarray(exact)) < 5 * error).all()
        drawn = np.unique(np.round(np.asarray(grads["A"][:, i, 0, 0]), 9))
        assert len(drawn) == min(i + 1, K2 // K1)  # horizons of one, two and three windows, as far as there are any


def test_chunks_are_pieces_of_one_stream():
    """Also masked and jitted: one chunk, and the same in pieces."""
    problem, args, reset = stream(steps=24)
    mask = np.random.default_rng(1).uniform(size=reset.shape)
    online = jb.training.train_online(problem.model, problem.loss, optax.sgd(0.1), K1, K2, cut=CUT)
    begin = online.init(args.params, args.state, args.xs, args.targets, key=jax.random.key(2))
    update = jax.jit(online.update)
    whole, metrics = update(begin, args.xs, args.targets, mask=mask, reset=reset)
    state, losses = begin, []
    for part in (slice(0, 6), slice(6, 9), slice(9, 24)):
        state, of_part = update(state, args.xs[part], args.targets[part], mask=mask[part], reset=reset[part])
        losses.append(of_part.loss)
    assert (
        difference(state._replace(carry=state.carry._replace(key=0)), whole._replace(carry=whole.carry._replace(key=0)))
        < 1e-12
    )
    assert difference(jnp.concatenate(losses), metrics.loss) < 1e-12


@pytest.mark.parametrize("options", [{"cut": 0.5}, {}])
def test_a_loss_without_targets_and_windows_that_reach_no_further_than_they_are_long(options):
    problem, args, _ = stream()
    for k2 in (3, 9):
        online = jb.training.train_online(problem.model, lambda y, _: y.sum(), optax.sgd(0.1), 3, k2, **options)
        key = {"key": jax.random.key(0)} if options else {}
        begin = online.init(args.params, args.state, args.xs, **key)
        after, metrics = jax.jit(online.update)(begin, args.xs, None)
        assert int(after.step) == 5
        assert np.isfinite(metrics.loss).all()


def online_of(*k, **options):
    problem = PROBLEMS["elman"]
    return jb.training.train_online(problem.model, problem.loss, optax.sgd(0.1), *k, **options)


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        ((4, 10), {"cut": 0.5}, "k2: found 10, expected a multiple of k1 = 4 with `cut`"),
        ((4, 8), {"cut": 0.5, "losses": "all"}, "losses: found 'all', expected 'newest' with `cut`"),
        ((4, 8), {"cut": 0.5, "burn_in": 2}, "burn_in: found 2, expected 0 with `cut`"),
        ((4, 8), {"cut": 1.0}, "cut: found 1, expected a probability"),
        ((4, 8), {"cut": [0.1, 0.2]}, "cut: found 2 probabilities, expected 1, one for each boundary"),
        ((4,), {"cut": 0.5, "forward": jb.rtrl}, "cut: found 0.5, expected None with `forward`"),
    ],
)
def test_bad_options_are_named(k, options, message):
    with pytest.raises(ValueError, match=message):
        online_of(*k, **options)


def test_bad_calls_are_named():
    _, args, _ = stream()
    key, online = jax.random.key(0), online_of(3, 9, cut=0.5)
    with pytest.raises(TypeError, match="xs: found None, expected those of a chunk, since an update may go back"):
        online.init(args.params, args.state, key=key)
    with pytest.raises(TypeError, match=r"key: found None of type NoneType, expected one of jax.random.key"):
        online.init(args.params, args.state, args.xs, args.targets)
    begin = online.init(args.params, args.state, args.xs, args.targets, key=key)
    with pytest.raises(ValueError, match="xs: found 13 time steps, expected a multiple of k1 = 3"):
        online.update(begin, args.xs[:13], args.targets[:13])
    with pytest.raises(ValueError, match=r"train_state.carry: found a DrawnStream of 6 steps, expected k2 - k1 = 3"):
        online_of(3, 6, cut=0.5).update(begin, args.xs, args.targets)
    with pytest.raises(TypeError, match=r"train_state.carry: found ndarray, expected a DrawnStream"):
        online.update(begin._replace(carry=args.state), args.xs, args.targets)
    with pytest.raises(ValueError, match="xs: found shape"):
        online.update(begin, args.xs[..., :1], args.targets)
