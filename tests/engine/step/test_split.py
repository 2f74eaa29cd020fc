import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import primitives
from steps import BUILT_IN, OTHERS, PLAIN, WITH_KEY_AND_COUNT, Example, H, I, O, normal, plain, plain_step

from jax_bptt.engine.leaves import combine, differentiable
from jax_bptt.engine.step.split import SplitStep, split_step

MATRIX = normal(10, H, H)


def put_together(parts: SplitStep, example: Example):
    """The step, by its parts; and what passes between them."""
    state, x = jax.tree.leaves(example.state), jax.tree.leaves(example.x)
    weights = parts.prepare(jax.tree.leaves(example.params))
    drive = parts.project(weights, x)
    after = parts.transition(weights, state, drive)
    return (after, parts.readout(weights, after, x, state)), (weights, state, drive)


def check(example: Example) -> tuple[SplitStep, tuple]:
    """The parts of a step put together equal it."""
    parts = split_step(example.step, example.params, example.state, example.x)
    (after, output), between = put_together(parts, example)
    new_state, expected = example.step(example.params, example.state, example.x)
    assert jax.tree.structure(output) == jax.tree.structure(expected)
    expected_leaves = map(jnp.asarray, jax.tree.leaves((new_state, expected)))
    for got, want in zip(jax.tree.leaves((after, output)), expected_leaves, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(plain(got), plain(want), rtol=1e-14, atol=1e-14)
    return parts, between


@pytest.mark.parametrize("name", BUILT_IN | OTHERS)
def test_parts_of_cells_put_together_equal_the_step(name):
    check((BUILT_IN | OTHERS)[name])


@pytest.mark.parametrize("name", [n for n in BUILT_IN | OTHERS if n not in ("stack", "haiku lstm")])
def test_no_product_with_inputs_is_left_in_the_transition(name):
    # A stack feeds the state of one layer to the next, and haiku's LSTM multiplies [x, h] with one matrix.
    parts, (weights, state, drive) = check((BUILT_IN | OTHERS)[name])
    for eqn in jax.make_jaxpr(parts.transition)(weights, state, drive).jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            assert I not in (d for v in eqn.invars for d in v.aval.shape)
            assert O not in (d for v in eqn.invars for d in v.aval.shape)


def test_plain_step_is_cut_into_its_four_parts():
    parts, (weights, state, drive) = check(Example(plain_step, PLAIN, normal(14, H), normal(15, I)))
    assert primitives(parts.prepare, jax.tree.leaves(PLAIN)) == []
    assert primitives(parts.project, weights, [normal(15, I)]) == ["dot_general"]
    assert primitives(parts.transition, weights, state, drive) == ["dot_general", "add", "tanh"]
    assert primitives(parts.readout, weights, state, [normal(15, I)], state) == ["dot_general"]
    assert parts.reads_after == (True,)
    assert parts.reads_before == (False,)
    assert all(parts.from_params)


def test_nested_jits_are_inlined():
    @jax.jit
    def affine(params, h, x):
        return jax.jit(jnp.matmul)(params["A"], h) + jax.jit(jnp.matmul)(params["B"], x)

    @jax.jit
    def step(params, h, x):
        h = jax.jit(jnp.tanh)(affine(params, h, x))
        return h, jax.jit(jnp.matmul)(params["C"], h)

    parts, (weights, state, drive) = check(Example(step, PLAIN, normal(14, H), normal(15, I)))
    assert primitives(parts.project, weights, [normal(15, I)]) == ["dot_general"]
    assert primitives(parts.transition, weights, state, drive) == ["dot_general", "add", "tanh"]


def test_a_jit_called_twice_and_on_literals_is_inlined_each_time():
    @jax.jit
    def blend(a, b, rate):
        return a + rate * (b - a)

    def step(params, h, x):
        h = blend(blend(h, jnp.tanh(h), 0.5), x, 2)
        return h, blend(h, h * h, 0.25)

    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        check(Example(step, {}, normal(14, I).astype(dtype), normal(15, I).astype(dtype)))


def test_transformed_weight_is_prepared_once():
    def step(params, h, x):
        A = params["A"].T / jnp.linalg.norm(params["A"])
        h = jnp.tanh(A @ h + params["B"] @ x)
        return h, A @ h

    parts, (weights, state, drive) = check(Example(step, PLAIN, normal(14, H), normal(15, I)))
    assert "transpose" in primitives(parts.prepare, jax.tree.leaves(PLAIN))
    assert "transpose" not in primitives(parts.transition, weights, state, drive)
    assert primitives(parts.transition, weights, state, drive) == ["dot_general", "add", "tanh"]
    assert primitives(parts.readout, weights, state, [normal(15, I)], state) == ["dot_general"]


def test_closed_over_constants_are_prepared_once_and_carry_no_gradient():
    def step(params, h, x):
        h = jnp.tanh((MATRIX / jnp.linalg.norm(MATRIX)) @ h + params["B"] @ x)
        return h, h

    parts, (weights, state, drive) = check(Example(step, PLAIN, normal(14, H), normal(15, I)))
    assert primitives(parts.transition, weights, state, drive) == ["dot_general", "add", "tanh"]
    assert [w.shape for w, from_params in zip(weights, parts.from_params, strict=True) if from_params] == [(H, I)]


def test_cond_stays_whole():
    def step(params, h, x):
        h = jax.lax.cond(h[0] > x[0], lambda h: params["A"] @ h, lambda h: h - 1, h)
        y = jax.lax.cond(h.sum() > 0, lambda h: params["C"] @ h, lambda h: jnp.zeros(O), h)
        return jnp.tanh(h), y

    for shift in (-10.0, 10.0):
        check(Example(step, PLAIN, normal(14, H) + shift, normal(15, I)))


def test_inner_scan_stays_whole():
    def step(params, h, x):
        h, hs = jax.lax.scan(lambda h, x_i: (jnp.tanh(params["A"] @ h + x_i),) * 2, h, x)
        return h, hs

    check(Example(step, PLAIN, normal(14, H), normal(15, I, H)))


def test_inner_scan_over_inputs_leaves_the_transition():
    def step(params, h, x):
        _, cumulated = jax.lax.scan(lambda s, x_i: (s + params["B"] @ x_i,) * 2, jnp.zeros(H), x)
        h = jnp.tanh(h + cumulated[-1])
        return h, h

    parts, (weights, state, drive) = check(Example(step, PLAIN, normal(14, H), normal(15, I, I)))
    assert "scan" in primitives(parts.project, weights, [normal(15, I, I)])
    assert "scan" not in primitives(parts.transition, weights, state, drive)


def test_embedding_of_integer_inputs_is_looked_up_for_all_rows():
    def step(params, h, token):
        h = jnp.tanh(params["A"] @ h + params["B"].T[token])
        return h, params["C"] @ h

    example = Example(step, PLAIN, normal(14, H), jnp.asarray(2))
    parts, (weights, state, drive) = check(example)
    assert primitives(parts.prepare, jax.tree.leaves(PLAIN)) == ["transpose"]
    assert {"gather", "dynamic_slice"} & set(primitives(parts.project, weights, [example.x]))
    assert [u.shape for u in drive] == [(H,)]
    assert primitives(parts.transition, weights, state, drive) == ["dot_general", "add", "tanh"]


def test_literals_and_repeated_outputs():
    def step(params, state, x):
        h = jnp.tanh(state["a"] + x)
        return {"a": h, "b": h, "c": jnp.zeros(())}, (h, h, 1.0, x, 3)

    state = {"a": normal(14, I), "b": normal(15, I), "c": normal(16)}
    parts, _ = check(Example(step, {}, state, normal(17, I)))
    assert parts.reads_after == (True, False, False)


def test_output_that_is_the_state_before_and_after():
    def step(params, h, x):
        return params["A"] @ h, h

    parts, _ = check(Example(step, PLAIN, normal(14, H), normal(15, I)))
    assert (parts.reads_after, parts.reads_before) == ((False,), (True,))

    def step_after(params, h, x):
        h = params["A"] @ h
        return h, h

    parts, _ = check(Example(step_after, PLAIN, normal(14, H), normal(15, I)))
    assert (parts.reads_after, parts.reads_before) == ((True,), (False,))


def test_state_that_passes_through_is_swapped_or_shifted():
    def passes(params, state, x):
        context, h = state
        h = jnp.tanh(context * h + x)
        return (context, h), context + h

    parts, _ = check(Example(passes, {}, (normal(14, I), normal(15, I)), normal(16, I)))
    assert (parts.reads_after, parts.reads_before) == ((True, True), (False, False))

    def swaps(params, state, x):
        a, b = state
        return (b, a), a + x

    check(Example(swaps, {}, (normal(14, I), normal(15, I)), normal(16, I)))

    def shifts(params, state, x):  # a delay line: the input itself becomes state
        return (x, state[0]), x + state[0] + 2 * state[1]

    check(Example(shifts, {}, (normal(14, I), normal(15, I)), normal(16, I)))


def test_state_that_is_a_param_or_constant():
    def step(params, state, x):
        return (params["A"][0], jnp.ones(H)), (params["A"][0] * 2, state[1] + x.sum())

    check(Example(step, PLAIN, (normal(14, H), normal(15, H)), normal(16, I)))


def test_output_from_what_is_neither_state_nor_input():
    def step(params, h, x):
        gate = jax.nn.sigmoid(params["A"] @ h)
        return gate * h, (gate, params["A"].sum(), x.sum())

    check(Example(step, PLAIN, normal(14, H), normal(15, I)))


def test_state_with_integers_and_keys():
    _, (_, leaves, _) = check(WITH_KEY_AND_COUNT)
    assert [d is None for d in differentiable(leaves)] == [False, True, True]


def test_checkpointed_step_is_all_transition_and_right():
    step = jax.checkpoint(lambda params, h, x: (jnp.tanh(params["A"] @ h + params["B"] @ x),) * 2)
    check(Example(step, PLAIN, normal(14, H), normal(15, I)))


def test_side_effects_show_once_and_only_where_asked_for(capfd):
    def step(params, h, x):
        jax.debug.print("input {}", x[0])
        h = jnp.tanh(params["A"] @ h + params["B"] @ x)
        y = params["C"] @ h
        jax.debug.print("output {}", y[0])
        return h, y

    example = Example(step, PLAIN, normal(14, H), normal(15, I))
    parts = split_step(*example)
    capfd.readouterr()
    _, (weights, state, drive) = put_together(parts, example)
    jax.effects_barrier()
    assert capfd.readouterr().out == ""
    after = parts.transition_with_effects(weights, state, drive)
    jax.effects_barrier()
    shown = capfd.readouterr().out.splitlines()
    new_state, output = plain_step(PLAIN, example.state, example.x)
    assert [line.split()[0] for line in shown] == ["input", "output"]
    np.testing.assert_allclose([float(line.split()[1]) for line in shown], [example.x[0], output[0]], rtol=1e-6)
    np.testing.assert_allclose(after[0], new_state, rtol=1e-14)


def test_split_under_tracing_closes_over_tracers_without_leaking():
    @jax.jit
    def f(scale, params, h, x):
        parts = split_step(lambda p, h, x: plain_step(p, scale * h, x), params, h, x)
        return put_together(parts, Example(None, params, h, x))[0]

    with jax.checking_leaks():
        (after,), output = f(0.5, PLAIN, normal(14, H), normal(15, I))
    h, y = plain_step(PLAIN, 0.5 * normal(14, H), normal(15, I))
    np.testing.assert_allclose(after, h, rtol=1e-14)
    np.testing.assert_allclose(output, y, rtol=1e-14)


def test_combine_undoes_differentiable():
    leaves = [normal(1, 2), jnp.arange(3), jax.random.key(0), jnp.asarray(True)]
    some = differentiable(leaves)
    assert [s is not None for s in some] == [True, False, False, False]
    assert combine([some[0] * 2, *some[1:]], leaves)[1:] == leaves[1:]
