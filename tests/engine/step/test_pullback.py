import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import primitives
from steps import BUILT_IN, OTHERS, PLAIN, WITH_KEY_AND_COUNT, Example, H, I, O, normal, plain, plain_step

import jax_bptt as jb
from jax_bptt.engine.leaves import combine, differentiable
from jax_bptt.engine.plan import default_save
from jax_bptt.engine.step.ends import Ends
from jax_bptt.engine.step.pullback import split_pullback, transition_partials
from jax_bptt.engine.step.split import split_step
from jax_bptt.engine.windows import without_leading


def taken_apart(example, transpose_from=math.inf):
    """The pullback of an example's step, and what it is called with."""
    parts = split_step(example.step, example.params, example.state, example.x, transpose_from=transpose_from)
    weights = parts.prepare(jax.tree.leaves(example.params))
    before, drive = jax.tree.leaves(example.state), parts.project(weights, jax.tree.leaves(example.x))
    arguments = parts.transition_with_effects, weights, before, drive, parts.costly
    pullback = split_pullback(*arguments, transpose_from=transpose_from)
    return parts, pullback, (weights, before, drive)


def pulled(pullback, weights, before, drive, delta):
    after, kept = pullback.advance(weights, before, drive)
    residuals = pullback.linearise(weights, before, drive, after, kept)
    return pullback.pull(pullback.fix(weights), residuals, delta)


def check(example, deltas=None):
    """The cotangent of the state, and the immediate partials, equal those of `jax.vjp`, of weights as they are, too."""
    check_one(example, deltas, transpose_from=math.inf)
    return check_one(example, deltas, transpose_from=1)


def check_one(example, deltas, transpose_from):
    parts, pullback, (weights, before, drive) = taken_apart(example, transpose_from)
    delta = differentiable(before)
    if deltas is None:
        delta = [None if d is None else normal(20 + i, *d.shape) for i, d in enumerate(delta)]
    else:
        delta = combine(deltas, delta)

    def new_state(*some):
        return differentiable(parts.transition(*map(combine, some, (weights, before, drive))))

    wanted = [differentiable(leaves) for leaves in (weights, before, drive)]
    weights_bar, before_bar, drive_bar = jax.vjp(new_state, *wanted)[1](delta)
    after, kept = pullback.advance(weights, before, drive)
    rows = jax.tree.map(lambda a: a[None], (before, drive, after, kept))
    of_rows = jax.vmap(pullback.again, (None, 0, 0, 0))
    by_rows = transition_partials(of_rows, weights, rows, jax.tree.map(lambda d: d[None], delta), wanted[::2])
    got = pulled(pullback, weights, before, drive, delta), by_rows[0], jax.tree.map(lambda d: d[0], by_rows[1])
    want = before_bar, weights_bar, drive_bar
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)
    few_before, few_after = (
        [None if follows else leaf for follows, leaf in zip(pullback.derived, state, strict=True)]
        for state in (before, after)
    )
    told = pullback.derive(weights, few_before, drive, few_after, kept)
    for a, b in zip(told, after, strict=True):
        np.testing.assert_allclose(plain(a), plain(b), rtol=1e-13, atol=1e-14)
    again = pullback.advance_with_effects(weights, before, drive)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves((after, kept)), strict=True):
        np.testing.assert_allclose(plain(a), plain(b), rtol=1e-13, atol=1e-14)
    return parts, pullback, (weights, before, drive)


@pytest.mark.parametrize("name", BUILT_IN | OTHERS)
def test_equals_the_pullback_of_the_step(name):
    check((BUILT_IN | OTHERS)[name])


@pytest.mark.parametrize(
    ("name", "kept", "residuals"), [("elman", [], 1), ("gru", [4 * H], 4), ("lstm", [4 * H], 6), ("plain", [], 1)]
)
def test_what_is_kept_and_what_the_reverse_step_reads_is_little(name, kept, residuals):
    example = BUILT_IN[name] if name in BUILT_IN else Example(plain_step, PLAIN, normal(14, H), normal(15, I))
    _, pullback, (weights, before, drive) = taken_apart(example)
    after, values = pullback.advance(weights, before, drive)
    assert sum(v.size for v in values) == sum(kept)
    assert sum(r.size for r in pullback.linearise(weights, before, drive, after, values)) == residuals * H


def previous_input_step(params, state, x):
    """The state holds its hidden part twice, the input of the step before, and the number of steps."""
    h, _, before, count = state
    h = jnp.tanh(params["A"] @ h + params["B"] @ (x + before))
    return (h, h, x, count + 1), h


PREVIOUS = Example(
    previous_input_step, PLAIN, (normal(14, H), normal(16, H), normal(15, I), jnp.int32(3)), normal(17, I)
)


@pytest.mark.parametrize(
    ("example", "derived"),
    [
        (BUILT_IN["elman"], [False]),
        (BUILT_IN["gru"], [False]),
        (BUILT_IN["lstm"], [True, False]),  # h = o ⊙ tanh(c), whose gate is kept
        (OTHERS["nnx lstm"], [False, True]),
        (PREVIOUS, [True, False, True, False]),
        (WITH_KEY_AND_COUNT, None),
    ],
)
def test_a_leaf_of_the_state_is_derived_where_what_is_saved_tells_it(example, derived):
    _, pullback, _ = check(example)
    assert derived is None or list(pullback.derived) == derived
    assert not all(pullback.derived)


@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "nnx gru", "nnx lstm", "equinox gru", "equinox lstm"])
def test_linearisation_computes_no_product(name):
    _, pullback, (weights, before, drive) = taken_apart((BUILT_IN | OTHERS)[name])
    after, kept = pullback.advance(weights, before, drive)
    assert "dot_general" not in primitives(pullback.linearise, weights, before, drive, after, kept)


@pytest.mark.parametrize(
    ("transition", "transposed"),
    [
        (lambda A, h: A @ h, True),
        (lambda A, h: A @ h + A @ (h * h), True),
        (lambda A, h: jnp.einsum("ij,j->i", A, h), True),
        (lambda A, h: h @ A, False),
        (lambda A, h: A @ h + h @ A, True),  # read both ways
        (lambda A, h: A @ h + A[0] * h, True),  # the first row is a weight of its own
        (lambda A, h: A @ h + (A * h[None]).sum(1), True),
        (lambda A, h: (A * h[None]).sum(1), False),
    ],
)
def test_weights_that_stand_before_rows_are_prepared_transposed(transition, transposed):
    def step(params, h, x):
        h = jnp.tanh(transition(params["A"], h) + params["B"] @ x)
        return h, h

    parts, _, (weights, before, drive) = check(Example(step, PLAIN, normal(14, H), normal(15, I)))
    assert any(w.shape == (H, H) and (w == PLAIN["A"].T).all() for w in weights) == transposed
    assert "transpose" not in primitives(parts.transition, weights, before, drive)


def test_a_weight_that_stands_before_several_rows_is_prepared_transposed():
    def step(params, h, x):
        h = jnp.tanh((params["A"] @ jnp.stack([h, h * h], axis=1)).sum(1) + params["B"] @ x)
        return h, h

    _, _, (weights, _, _) = check(Example(step, PLAIN, normal(14, H), normal(15, I)))
    assert any(w.shape == (H, H) and (w == PLAIN["A"].T).all() for w in weights)


@pytest.mark.parametrize(
    ("name", "hidden", "saved"),
    [("gru", 128, False), ("gru", 192, True), ("lstm", 64, False), ("lstm", 128, True), ("elman", 16, True)],
)
def test_what_takes_much_work_to_compute_again_is_saved(name, hidden, saved):
    cell = getattr(jb.cells, name)(I, hidden, O, dtype=jnp.float32)
    params, states = jax.eval_shape(lambda: (cell.init(jax.random.key(0)), cell.initial_state(1)))
    state, x = without_leading(states, 1), jax.ShapeDtypeStruct((I,), jnp.float32)
    parts = split_step(cell.step, params, state, x)
    weights = jax.eval_shape(parts.prepare, jax.tree.leaves(params))
    drive = jax.eval_shape(parts.project, weights, [x])
    pullback = split_pullback(parts.transition_with_effects, weights, jax.tree.leaves(state), drive, parts.costly)
    assert (default_save(pullback.recomputation) == "dots") == saved


def test_reverse_step_is_one_factor_and_one_product():
    _, pullback, (weights, before, drive) = check(Example(plain_step, PLAIN, normal(14, H), normal(15, I)))
    after, kept = pullback.advance(weights, before, drive)
    fixed, residuals = pullback.fix(weights), pullback.linearise(weights, before, drive, after, kept)
    assert [f.shape for f in fixed] == [(H, H)]
    np.testing.assert_allclose(residuals[0], 1 - after[0] ** 2, rtol=0, atol=2e-16)  # the rounding of numbers below 1
    operations = primitives(pullback.pull, fixed, residuals, before)
    assert sorted(set(operations) - {"copy", "transpose"}) == ["dot_general", "mul"]


def test_keys_and_integers_have_no_cotangent():
    step, params, state, x = WITH_KEY_AND_COUNT
    _, pullback, (weights, before, drive) = taken_apart(WITH_KEY_AND_COUNT)
    delta = [normal(16, H), None, None]
    got = pulled(pullback, weights, before, drive, delta)
    want = jax.vjp(lambda h: step(params, state | {"h": h}, x)[0]["h"], state["h"])[1](delta[0])[0]
    np.testing.assert_allclose(got[0], want, rtol=1e-13)
    assert got[1:] == [None, None]


@pytest.mark.parametrize(
    "backwards",
    [
        lambda delta: jnp.clip(delta, -0.1, 0.1),
        lambda delta: delta + 1,
        lambda delta: delta * delta,
        lambda delta: jnp.where(delta > 0, delta, 0),
        lambda delta: jnp.where(jnp.arange(H) > 1, delta, 2.0),
        lambda delta: 1 / (2 + delta),
        lambda delta: (delta - delta) + 3 * delta,
    ],
)
def test_custom_derivatives_need_not_be_linear(backwards):
    @jax.custom_vjp
    def changed(x):
        return x

    changed.defvjp(lambda x: (x, None), lambda _, delta: (backwards(delta),))

    def step(params, h, x):
        h = changed(jnp.tanh(changed(params["A"] @ h + params["B"] @ x)))
        return h, h

    check(Example(step, PLAIN, normal(14, H), normal(15, I)), [10 * normal(16, H)])


@pytest.mark.parametrize(
    "f",
    [
        jax.nn.relu,
        jax.nn.gelu,
        jnp.sin,
        lambda z: z / (1 + jnp.abs(z)),
        lambda z: jnp.where(z > 0, z, jnp.expm1(z)),
        lambda z: jax.nn.softmax(z) + z,
        lambda z: (z - z.mean()) / jnp.sqrt(z.var() + 1e-5),
        lambda z: jax.lax.cond(z[0] > 0, jnp.sin, jnp.cos, z),
        lambda z: jnp.real(jnp.exp(1j * z)),
        lambda z: -z,
    ],
)
def test_other_transitions(f):
    def step(params, h, x):
        h = f(params["A"] @ h + params["B"] @ x) + h * x[0] - f(h)
        return h, h

    check(Example(step, PLAIN, normal(14, H), normal(15, I)))


def test_low_precision_inside_a_step():
    def step(params, h, x):
        low = (params["A"] @ h).astype(jnp.bfloat16)
        h = jnp.tanh(low.astype(h.dtype) * 2 + params["B"] @ x)
        return h, h

    check(Example(step, PLAIN, normal(14, H), normal(15, I)))


@pytest.mark.parametrize(
    ("after", "credited", "of_state", "has_delta"),
    [
        (lambda a, h, u: [h[1], h[2], h[0] * u], (1, 0, 0), (0, 0, 0), (1, 1, 1)),  # a register
        (lambda a, h, u: [h[1], h[2], u], (0, 0, 1), (0, 0, 0), (0, 0, 1)),  # credit goes the other way
        (lambda a, h, u: [h[1], h[2], u], (1, 0, 0), (0, 0, 0), (1, 1, 1)),
        (lambda a, h, u: [h[0], h[1] * h[0], u + h[1]], (0, 0, 1), (0, 0, 0), (0, 0, 1)),  # of nothing asked for
        (lambda a, h, u: [h[0], h[1] * h[0], u + h[1]], (0, 0, 1), (1, 0, 0), (1, 1, 1)),
        (lambda a, h, u: [h[1], h[0], a * h[2]], (1, 0, 0), (0, 1, 0), (1, 1, 0)),  # two that change places
        (lambda a, h, u: [a, jnp.ones(()), h[0]], (0, 1, 1), (0, 0, 0), (1, 0, 1)),  # what a step makes of no state
        (lambda a, h, u: [a * h[0], h[1], h[2]], (0, 0, 0), (1, 1, 1), (0, 0, 0)),  # no credit
    ],
)
def test_delta_is_of_leaves_between_credit_and_what_is_asked_for(after, credited, of_state, has_delta):
    """The weight and the drive are asked for."""
    one = jnp.ones(())
    ends = Ends(*([bool(is_it) for is_it in of] for of in (credited, of_state, (1,), (1,))))
    pullback = split_pullback(lambda w, h, u: after(*w, h, *u), [one], [one] * 3, [one], (False,), ends)
    assert pullback.has_delta == tuple(map(bool, has_delta))
