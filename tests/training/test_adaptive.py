import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb
from jax_bptt.training.adaptive import estimate_bias

HORIZONS = (2, 4, 8)
PROBLEM = PROBLEMS["elman"]


def adaptive(tolerance=0.1, every=3, **options):
    gradient_of = functools.partial(jb.truncated_bptt, PROBLEM.model, PROBLEM.loss, 2, reduction="mean")
    options = {"optimizer": optax.sgd(0.1), "horizons": HORIZONS} | options
    return jb.training.train_adaptively(gradient_of, tolerance=tolerance, every=every, **options)


@pytest.mark.parametrize("horizons", [(1, 2, 4, 8), (3, 5, 6), (8, 16, 32, 40, 96)])
@pytest.mark.parametrize("beta", [0.3, 0.8, 0.97])
def test_the_bias_of_geometric_credit(horizons, beta):
    """ĝ_K = Σ_{j<K} β^j, whose limit is 1/(1 − β)."""
    g = np.asarray([(1 - beta**K) / (1 - beta) for K in horizons])
    bias = estimate_bias(np.asarray(horizons), jnp.asarray([np.nan, *np.diff(g)]), jnp.asarray(g[-1]))
    np.testing.assert_allclose(bias, (1 / (1 - beta) - g) / g[-1], rtol=1e-6)


def test_the_bias_of_credit_that_ends_or_does_not_decay():
    known, norm = np.asarray((1, 2, 4)), jnp.asarray(2.0)
    assert estimate_bias(known, jnp.asarray([0.0, 1.0, 0.0]), norm).tolist() == [0.5, 0.0, 0.0]
    assert estimate_bias(known, jnp.asarray([0.0, 0.0, 0.0]), norm).tolist() == [0.0, 0.0, 0.0]
    assert estimate_bias(known, jnp.asarray([0.0, 0.0, 0.0]), jnp.zeros(())).tolist() == [0.0, 0.0, 0.0]
    for differences in ([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], [0.0, 0.0, 1.0]):
        assert np.isinf(estimate_bias(known, jnp.asarray(differences), norm)).all()


@pytest.mark.parametrize("tolerance", [0.05])
def test_it_is_a_loop_of_updates_with_the_horizon_that_the_gradients_tell(tolerance):
    args = arguments(PROBLEM, 4, 12, 3)
    online, optimizer = adaptive(tolerance), optax.sgd(0.1)
    train_state = online.init(args.params, args.state)
    by_hand, update, horizon = jb.training.init(args.params, optimizer, args.state), jax.jit(online.update), None
    of = [jax.jit(jb.reference.truncated_bptt(PROBLEM.model, PROBLEM.loss, 2, K, reduction="mean")) for K in HORIZONS]
    for i in range(4):
        call = args.xs + i, args.targets, np.ones((12, 3)), None
        if i % 3 == 0:
            grads = [g(by_hand.params, by_hand.carry, *call)[1] for g in of]
            steps = [optax.tree.norm(optax.tree.sub(b, a)) for a, b in itertools.pairwise(grads)]
            bias = estimate_bias(np.asarray(HORIZONS), jnp.asarray([0.0, *steps]), optax.tree.norm(grads[-1]))
            horizon = next((K for K, b in zip(HORIZONS, bias, strict=True) if b <= tolerance), HORIZONS[-1])
        gradient = of[HORIZONS.index(horizon)]
        by_hand, want = jb.training.train_step(gradient, optimizer)(by_hand, *call[:2], mask=call[2])
        train_state, metrics = update(train_state, *call[:2], mask=call[2])
        assert int(train_state.carry.horizon) == horizon
        assert difference((train_state.params, train_state.carry.state), (by_hand.params, by_hand.carry)) < 1e-10
        assert difference(metrics, want) < 1e-10
        np.testing.assert_allclose(train_state.carry.bias, bias, rtol=1e-6)
    assert update._cache_size() == 1  # what is returned is of the very types of what was taken


def test_only_what_is_due_is_computed():
    """Between two estimates one gradient an update is run, whatever the number of horizons."""
    runs = []

    def gradient_of(k2):
        def gradient(params, state, xs, targets):
            jax.debug.callback(lambda: runs.append(k2))
            return (params * xs.sum(), state), params * 0.5**k2

        return gradient

    online = jb.training.train_adaptively(gradient_of, optax.sgd(0.0), HORIZONS, 0.1, every=4)
    train_state = online.init(jnp.ones(()), jnp.zeros((1, 1)))
    for _ in range(5):
        train_state, _ = online.update(train_state, jnp.ones((3, 1)), None)
    jax.effects_barrier()
    assert len(runs) == 2 * (len(HORIZONS) + 1) + 3


def test_scanned_and_divided_among_devices():
    args = arguments(PROBLEM, 4, 16, 4)
    of = functools.partial(jb.truncated_bptt, PROBLEM.model, PROBLEM.loss, 2, reduction="mean")
    makers = of, lambda k2: jb.data_parallel(of(k2))
    ends = []
    for make in makers:
        online = jb.training.train_adaptively(make, optax.sgd(0.1), HORIZONS, 0.1, every=2)

        @jax.jit
        def train(begin, online=online):
            return jax.lax.scan(lambda s, _: online.update(s, args.xs, args.targets), begin, length=4)

        ends.append(train(online.init(args.params, args.state)))
    assert difference(*ends) < 1e-10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": 1.0}, ValueError, "tolerance: found 1.0, expected a number between 0 and 1"),
        ({"tolerance": "low"}, TypeError, "tolerance: found 'low'"),
        ({"every": 0}, ValueError, "every: found 0"),
        ({"horizons": (2, 4)}, ValueError, r"horizons: found \[2, 4\], expected a sequence of 3 or more growing"),
        ({"horizons": (8, 4, 2)}, ValueError, r"horizons: found \[8, 4, 2\], expected"),
        ({"horizons": 8}, TypeError, "horizons: found 8"),
        ({"horizons": (1, 2, 4)}, ValueError, "k2: found 1, expected at least k1 = 2"),
        ({"optimizer": "sgd"}, TypeError, "optimizer: found 'sgd'"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        adaptive(**options)


def test_bad_calls_are_named():
    with pytest.raises(TypeError, match="gradient_of: found 3 of type int, expected a function of a horizon"):
        jb.training.train_adaptively(3, optax.sgd(0.1), HORIZONS, 0.1)
    args, online = arguments(PROBLEM, 4, 16, 4), adaptive()
    begin = jb.training.init(args.params, optax.sgd(0.1), args.state)
    with pytest.raises(TypeError, match=r"train_state.carry: found ndarray|ArrayImpl, expected an Adaptive of 3"):
        online.update(begin, args.xs, args.targets)
    of_four = adaptive(horizons=(2, 4, 8, 16)).init(args.params, args.state)
    with pytest.raises(TypeError, match=r"train_state.carry: found one of 4 horizons, expected an Adaptive of 3"):
        online.update(of_four, args.xs, args.targets)
    with pytest.raises(TypeError, match=r"train_state.carry: found a Adaptive, which is for train_adaptively"):
        jb.training.train_step(jb.bptt(PROBLEM.model, PROBLEM.loss), optax.sgd(0.1))(of_four, args.xs, args.targets)
    with pytest.raises(ValueError, match=r"key: found .*, expected None: nothing is drawn"):
        online.init(args.params, args.state, key=jax.random.key(0))


def test_in_a_chunk_all_credit_seems_to_decay_towards_its_length():
    """Of h ← h + p x credit never decays; the bias told is that beside the gradient of the chunk, which is exact."""

    def step(params, h, x):
        return h + params * x, h

    def gradient_of(k2):
        return jb.truncated_bptt(step, lambda y, _: y, 1, k2)

    xs, horizons = jnp.ones((64, 1)), (8, 16, 32, 64)
    online = jb.training.train_adaptively(gradient_of, optax.sgd(0.0), horizons, 0.1)
    after, _ = online.update(online.init(jnp.ones(()), jnp.zeros(1)), xs, None)
    exact = jb.bptt(step, lambda y, _: y)(jnp.ones(()), jnp.zeros(1), xs)[1]
    truncated = [gradient_of(k2)(jnp.ones(()), jnp.zeros(1), xs)[1] for k2 in horizons]
    assert (np.asarray(after.carry.bias) >= [float(abs(g - exact) / exact) for g in truncated]).all()
    assert int(after.carry.horizon) == 64
