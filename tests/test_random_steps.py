"""Random steps: every gradient function against `jax.grad` on steps that hypothesis draws from `random_steps`.

`scan` runs them in bodies of both kinds: written for a batch, and for one example.
"""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_steps
from random_steps import CALLS, INEXACT, OPERATIONS, SHAPES, Arguments, Program, programs, step_of

import jax_bptt as jb

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
SAVES = [None, "dots", "states", "boundaries"]
EXAMPLES = {"default": 10, "thorough": 500}[os.environ.get("HYPOTHESIS_PROFILE", "default")]
examples = hypothesis.settings(max_examples=EXAMPLES)


class Case(NamedTuple):
    program: Program
    args: Arguments
    call: dict[str, Any]
    options: dict[str, Any]
    T: int


@st.composite
def cases(draw: Any, linear: bool = True, with_mask: bool = True) -> Case:
    """A program, arguments, and the options that all gradient functions share."""
    program = draw(programs(linear))
    T, B = draw(st.integers(1, 7)), draw(st.sampled_from([1, 2, 17]))  # from 16 on the loop reads transposed weights
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    args = random_steps.arguments(program, rng, T, B)
    call, options = {}, {"save": draw(st.sampled_from(SAVES))}
    if with_mask:
        masks = [None, rng.uniform(size=T), rng.integers(0, 3, size=(T, B)), rng.uniform(size=(T, B)) < 0.7]
        call["mask"] = masks[draw(st.integers(0, 3))]
        options["reduction"] = draw(st.sampled_from(["sum", "mean"]))
        options["burn_in"] = draw(st.sampled_from([0, draw(st.integers(0, T - 1))]))
    call["reset"] = [None, rng.uniform(size=(T, B)) < 0.3, rng.uniform(size=T) < 0.3][draw(st.integers(0, 2))]
    if call["reset"] is not None and draw(st.booleans()):
        call["reset_state"] = tuple(random_steps.values(rng, kind, B) for kind in program.state)
    return Case(program, args, call, options, T)


@st.composite
def truncations(draw: Any, T: int, losses: str = "newest") -> tuple[int, int]:
    k1 = draw(st.integers(1, T + 1))
    return k1, draw(st.just(k1) | st.integers(k1 if losses == "newest" else 1, max(k1, T + 2)))


def some_of(draw: Any, number: int) -> tuple[bool, ...]:
    """All of so many, or some, or none."""
    return draw(st.just((True,) * number) | st.tuples(*[st.booleans()] * number))


def all_inexact(kinds: tuple[str, ...]) -> bool:
    return all(kind in INEXACT for kind in kinds)


def argnums(draw: Any, program: Program) -> tuple[int, ...]:
    """Of those with respect to which a derivative exists, all or some."""
    there = 0, *[n for n, kinds in ((1, program.state), (2, program.x)) if all_inexact(kinds)]
    return tuple(itertools.compress(there, some_of(draw, len(there)))) or (0,)


def loss_of(read: tuple[bool, ...]) -> Any:
    """The loss of those outputs that it reads."""

    def loss(output, target):
        some, aims = (list(itertools.compress(leaves, read)) for leaves in (jax.tree.leaves(output), target))
        return random_steps.loss(some, aims)

    return loss


def reference_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("save", "window", "parallel")}


def run(function: Any, *args: Any, **call: Any) -> Any:
    """Compiled. Compiled programs take memory maps, of which a process has 65,530: they are dropped now and then."""
    if next(_programs) % 100 == 99:
        jax.clear_caches()
    return jax.jit(function)(*args, **call)


_programs = itertools.count()


def numbers(tree: Any) -> list[np.ndarray]:
    """The leaves as numbers: of keys their data, and nothing of what has no derivative."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.asarray(jax.random.key_data(a) if key else a) for a, key in zip(leaves, is_key, strict=True)]


def ways(function: Any, *args: Any, **call: Any) -> Iterator[Any]:
    """What a function makes: compiled as a whole; and operation by operation, for programs that XLA compiles wrongly.

    (JAX 0.10.2, CPU, 2026-11: the `jit` of `jax.grad` of a scan that rotates complex numbers came out wrong, and right
    without a `jit` around it or with `--xla_disable_hlo_passes=algsimp`; ours agreed with the latter. A `lax.scan` of
    `m.at[i].set(x)`, then `m.at[1:].set(m[:-1])`, is wrong from 0.7.2 to 0.12.0.1, and so is ours: its value is right
    where it is differentiated, or not compiled.)
    """
    yield run(function, *args, **call)
    yield function(*args, **call)
    with jax.disable_jit():  # the steps of scans, too
        made = function(*args, **call)
    yield made


def check_close(case: Case, ours: Iterator[tuple], reference: Iterator[tuple]) -> None:
    """What ours makes is what JAX makes, compiled or not."""
    precision = "float32" if case.program.single() else "float64"
    got, wanted = next(ours), []
    worst = np.inf
    for want in reference:
        wanted.append(want)
        worst = min(worst, largest_difference(got, want))
        if worst <= TOLERANCE[precision]:
            break
    else:
        worst = min(worst, *(largest_difference(got, want) for got in ours for want in wanted))
    decade = f"1e{np.ceil(np.log10(max(worst, 1e-20))):.0f}"
    hypothesis.event(f"largest relative difference, {precision}", payload=decade)
    assert worst <= TOLERANCE[precision]


def largest_difference(got: tuple, want: tuple) -> float:
    """Of each part of the result as a whole, since a leaf can be the small rest of large terms."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        pairs = list(zip(numbers(a), numbers(b), strict=True))
        assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
        assert all(np.isfinite(b).all() for _, b in pairs)
        largest = max((np.abs(b).max(initial=0) for _, b in pairs), default=0)
        away = max((np.abs(a.astype(complex) - b).max(initial=0) for a, b in pairs), default=0)
        worst = max(worst, away / max(largest, 1e-3))
    return worst


def note(case: Case) -> None:
    """What the live part of the program is made of, for `--hypothesis-show-statistics`."""
    live = case.program.live()
    for place, instruction in enumerate(case.program.instructions, case.program.first("instructions")):
        if place in live:
            hypothesis.event(f"call: {instruction.call}")


@hypothesis.given(st.data())
@examples
def test_bptt_equals_jax_grad(data):
    case = data.draw(cases(linear=False))
    note(case)
    window = data.draw(st.sampled_from([None, 1, 2, 3, case.T + 1]))
    options = case.options | {"argnums": argnums(data.draw, case.program)}
    of_loss = loss_of(some_of(data.draw, len(case.program.outputs)))
    step = step_of(case.program)
    gradient = jb.bptt(step, of_loss, window=window, **options)
    reference = jb.reference.bptt(step, of_loss, **reference_options(options))
    both = (ways(function, *case.args, **case.call) for function in (gradient, reference))
    check_close(case, *(((*values, *grads) for values, grads in made) for made in both))


@hypothesis.given(st.data())
@examples
def test_truncated_bptt_equals_jax_grad(data):
    case = data.draw(cases())
    note(case)
    losses = data.draw(st.sampled_from(["newest", "all", "last"]))
    k1, k2 = data.draw(truncations(case.T, losses))
    parallel = data.draw(st.sampled_from([None, 1, 2, 5]))
    options = case.options | {"argnums": argnums(data.draw, case.program), "losses": losses}
    of_loss = loss_of(some_of(data.draw, len(case.program.outputs)))
    step = step_of(case.program)
    gradient = jb.truncated_bptt(step, of_loss, k1, k2, parallel=parallel, **options)
    reference = jb.reference.truncated_bptt(step, of_loss, k1, k2, **reference_options(options))
    both = (ways(function, *case.args, **case.call) for function in (gradient, reference))
    check_close(case, *(((*values, *grads) for values, grads in made) for made in both))


# State gradients: states are moved by what is zero, and the output is made of the states that were moved.


def moved_step(program: Program) -> Any:
    """The step with `(x, moves)` for its input, moves of the leaves of the new state that have a derivative."""
    exact = [leaf for leaf, kind in enumerate(program.state) if kind in INEXACT]

    def step(params, state, x_and_moves):
        x, moves = x_and_moves
        values = random_steps.registers(program, params, state, x)
        new = [values[i] for i in program.new_state]
        for leaf, move in zip(exact, moves, strict=True):
            new[leaf] = new[leaf] + move
        # Of leaves of the same value the first is read; what depends on params alone is no function of the state.
        given = {i: new[leaf] for leaf, i in reversed([*enumerate(program.new_state)]) if i in program.moving()}
        values = random_steps.registers(program, params, state, x, given)
        return tuple(new), random_steps.output_of(program, values)

    return step


def by_moves(case: Case, of_loss: Any, params: Any, state: Any, xs: Any, targets: Any, **call: Any) -> Any:
    """`jb.state_gradients` of the leaves that have a derivative, by `jax.grad`."""
    program, step, burn_in = case.program, moved_step(case.program), case.options["burn_in"]
    exact = [leaf for leaf, kind in enumerate(program.state) if kind in INEXACT]
    moves = [jnp.zeros((case.T, *state[leaf].shape), state[leaf].dtype) for leaf in exact]
    scanned = {"mask", "reset"}

    def gradient(reduction, state, moves, steps):
        sliced = {n: a if n not in scanned or a is None else a[steps] for n, a in call.items()}
        of_steps = jax.tree.map(lambda a: a[steps], (xs, targets))
        make = jb.reference.bptt(lambda _, *rest: step(params, *rest), of_loss, reduction=reduction)
        return make(0.0, state, (of_steps[0], [m[steps] for m in moves]), of_steps[1], **sliced)[0]

    if burn_in:
        state = gradient("sum", state, moves, slice(0, burn_in))[1]

    def value(start_moves, moves):
        start = list(state)
        for leaf, move in zip(exact, start_moves, strict=True):
            start[leaf] = start[leaf] + move
        return gradient(case.options["reduction"], tuple(start), moves, slice(burn_in, None))[0]

    start_bar, moves_bar = jax.grad(value, argnums=(0, 1))([m[0] for m in moves], moves)
    return [m.at[burn_in - 1].set(s) if burn_in else m for s, m in zip(start_bar, moves_bar, strict=True)]


@hypothesis.given(st.data())
@examples
def test_state_gradients_equal_those_by_moves(data):
    case = data.draw(cases(linear=False))
    note(case)
    window = data.draw(st.sampled_from([None, 1, 2, 3, case.T + 1]))
    of_loss = loss_of(some_of(data.draw, len(case.program.outputs)))
    deltas = jb.state_gradients(step_of(case.program), of_loss, window=window, **case.options)
    got = jax.eval_shape(deltas, *case.args, **case.call)
    for kind, delta in zip(case.program.state, got, strict=True):
        assert (delta.dtype != jax.dtypes.float0) == (kind in INEXACT)
        assert delta.shape == (case.T, case.args.targets[0].shape[1], *SHAPES[kind][0])
    both = (ways(function, *case.args, **case.call) for function in (deltas, partial(by_moves, case, of_loss)))
    check_close(case, *(((numbers(leaves),) for leaves in made) for made in both))


# Unroll: a random function of outputs and last state, linear in them. The reference gets the last state as an output.


def inner_product(tree: Any, cotangents: Any) -> jax.Array:
    """The real part of Σ ⟨leaf, cotangent⟩, of whatever is a number; a leaf whose cotangent is None is not read."""
    pairs = zip(jax.tree.leaves(tree), cotangents, strict=True)
    read = ((a, c) for a, c in pairs if c is not None and is_number(a))
    return sum((jnp.sum(a * c).real.astype("float64") for a, c in read), jnp.zeros(()))


def is_number(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def moving_value(value: Any, chosen: tuple[bool, ...], moving: Any, fixed: Any) -> Any:
    """Value and gradient of `value`, with respect to what has a derivative of the parts that are chosen."""

    def of_exact(exact, rest):
        trees = jax.tree.map(lambda e, r: r if e is None else e, exact, rest, is_leaf=lambda e: e is None)
        return value(trees, fixed)

    def exact(part, is_chosen):
        return jax.tree.map(lambda a: a if is_chosen and jnp.issubdtype(a.dtype, jnp.inexact) else None, part)

    parts = tuple(map(exact, moving, chosen))
    return jax.value_and_grad(of_exact, has_aux=True)(parts, moving)


def cotangents(draw: Any, case: Case) -> tuple[list[Any], list[Any]]:
    """Of last state and outputs, of all leaves or of some."""
    rng = np.random.default_rng(0)
    _, state, _, targets = case.args
    to_last = [rng.normal(size=leaf.shape) if is_number(leaf) else np.zeros(leaf.shape) for leaf in state]
    some = [c if is_read else None for c, is_read in zip(to_last, some_of(draw, len(to_last)), strict=True)]
    return some, [c if is_read else None for c, is_read in zip(targets, some_of(draw, len(targets)), strict=True)]


def by_unroll(case: Case, options: dict[str, Any], moving: Any, cotangents: Any) -> Any:
    params, state, xs, reset_state = moving
    step = step_of(case.program)
    if options["close_over_params"]:
        last, outputs = jb.unroll(
            lambda _, *rest: step(params, *rest), (), state, xs, **case.call | reset_state, **options["of_unroll"]
        )
    else:
        last, outputs = jb.unroll(step, params, state, xs, **case.call | reset_state, **options["of_unroll"])
    to_last, to_outputs = cotangents
    return inner_product(outputs, to_outputs) + inner_product(last, to_last), last


def by_reference(case: Case, options: dict[str, Any], moving: Any, cotangents: Any) -> Any:
    params, state, xs, reset_state = moving
    to_last, to_outputs = cotangents
    at_end = [c if c is None else jnp.zeros((case.T, *c.shape)).at[-1].set(c) for c in to_last]

    def step(_, state, x):
        state, output = step_of(case.program)(params, state, x)
        return state, (output, state)

    k1, k2 = (options["of_unroll"].get(k, case.T) for k in ("k1", "k2"))
    gradient = jb.reference.truncated_bptt(step, inner_product, k1, k2)
    return gradient(0.0, state, xs, [*to_outputs, *at_end], **case.call | reset_state)[0]


@hypothesis.given(st.data())
@examples
def test_unroll_equals_jax_grad(data):
    case = data.draw(cases(with_mask=False))
    note(case)
    of_unroll = case.options | {"window": data.draw(st.sampled_from([None, 1, 2, 3, case.T + 1]))}
    if data.draw(st.booleans()):
        k1, k2 = data.draw(truncations(case.T))
        of_unroll = case.options | {"k1": k1, "k2": k2, "parallel": data.draw(st.sampled_from([None, 1, 2]))}
    options = {"of_unroll": of_unroll, "close_over_params": data.draw(st.booleans())}
    params, state, xs, _ = case.args
    reset_state = {n: case.call.pop(n) for n in ("reset_state",) if n in case.call}
    args, chosen = ((params, state, xs, reset_state), cotangents(data.draw, case)), some_of(data.draw, 4)
    ours, reference = (partial(moving_value, partial(by, case, options), chosen) for by in (by_unroll, by_reference))
    check_close(case, *(((*values, grads) for values, grads in ways(by, *args)) for by in (ours, reference)))


def by_scan(case: Case, options: dict[str, Any], moving: Any, cotangents: Any) -> Any:
    """A body that is written for a batch, or for one example, without an axis for it."""
    params, state, xs, _ = moving
    step = partial(step_of(case.program), params)
    if options["of_one"]:
        of_state, of_xs = jax.tree.map(lambda a: a[0], state), jax.tree.map(lambda a: a[:, 0], xs)
        last, outputs = jb.scan(step, of_state, of_xs, **options["of_unroll"])
        last, outputs = jax.tree.map(lambda a: a[None], last), jax.tree.map(lambda a: a[:, None], outputs)
    else:
        last, outputs = jb.scan(jax.vmap(step), state, xs, **options["of_unroll"])
    to_last, to_outputs = cotangents
    return inner_product(outputs, to_outputs) + inner_product(last, to_last), last


@hypothesis.given(st.data())
@examples
def test_scan_equals_jax_grad(data):
    case = data.draw(cases(with_mask=False))
    note(case)
    case.call.clear()
    of_scan = case.options | {"window": data.draw(st.sampled_from([None, 1, 2, 3, case.T + 1]))}
    if data.draw(st.booleans()):
        k1, k2 = data.draw(truncations(case.T))
        of_scan = case.options | {"k1": k1, "k2": k2}
    params, state, xs, targets = case.args
    of_one = data.draw(st.booleans()) and targets[0].shape[1] == 1
    options = {"of_unroll": of_scan | {"unroll": data.draw(st.sampled_from([None, 2, True]))}, "of_one": of_one}
    args, chosen = ((params, state, xs, {}), cotangents(data.draw, case)), some_of(data.draw, 4)
    ours, reference = (partial(moving_value, partial(by, case, options), chosen) for by in (by_scan, by_reference))
    check_close(case, *(((*values, grads) for values, grads in ways(by, *args)) for by in (ours, reference)))


# The grammar.


def check_made(name: str, call: str) -> None:
    """That an operation makes what it says in a call."""
    operation = OPERATIONS[name]
    read = [random_steps.values(np.random.default_rng(0), kind) for kind in operation.reads]
    made = jax.eval_shape(partial(CALLS[call], operation.function), *read)
    shape, dtype = SHAPES[operation.makes]
    assert made.shape == shape, name
    assert dtype == "key" or made.dtype == dtype, name


def test_operations_make_what_they_say():
    for name in OPERATIONS:
        check_made(name, "plain")


@pytest.mark.parametrize("call", CALLS)
def test_calls_keep_what_an_operation_makes(call):
    last_of_kind = {operation.makes: name for name, operation in OPERATIONS.items()}
    for name in last_of_kind.values():
        if call == "plain" or random_steps.can_call(call, OPERATIONS[name]):
            check_made(name, call)


def test_every_operation_and_call_is_drawn():
    wanted = {*map(random_steps.family_of, OPERATIONS), *CALLS, "clipped_gradient"}
    seen: set[str] = set()

    # Many short runs: within one run, examples are often variations of earlier ones.
    for seed in range(150):

        @hypothesis.seed(seed)
        @hypothesis.settings(max_examples=10, derandomize=False, database=None)
        @hypothesis.given(programs(linear=False))
        def collect(program):
            places = enumerate(program.instructions, program.first("instructions"))
            live = [i for place, i in places if place in program.live()]
            seen.update(*({random_steps.family_of(i.operation), i.call} for i in live))

        collect()
        if wanted <= seen:
            break
    assert wanted - seen == set()
