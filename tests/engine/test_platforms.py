"""What is chosen by platform, and several time steps in one body of the loops: the same gradient in another program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from problems import PROBLEMS, arguments, difference

import jax_bptt as jb
from jax_bptt.engine.plan import BODY_ON_GPU, ROWS_ON_GPU, Plan, default_bodies, default_window, on_gpu
from jax_bptt.engine.step.equations import count
from jax_bptt.engine.step.split import split_step
from jax_bptt.engine.windows import Windows

T, B = 45, 3
GRADIENTS = {
    "exact": lambda *of, **more: jb.bptt(*of, **more),
    "windows": lambda *of, **more: jb.bptt(*of, window=19, **more),
    "boundaries": lambda *of, **more: jb.bptt(*of, save="boundaries", **more),
    "residuals": lambda *of, **more: jb.bptt(*of, save="dots", argnums=(0, 1, 2), **more),
    "burn-in": lambda *of, **more: jb.bptt(*of, burn_in=9, **more),
    "in turn": lambda *of, **more: jb.truncated_bptt(*of, 16, 16, parallel=1, **more),
    "overlapping": lambda *of, **more: jb.truncated_bptt(*of, 9, 21, **more),
    "state gradients": lambda *of, **more: jb.state_gradients(*of, **more),
}


def by_grad(run, problem):
    """Loss and gradient through `unroll` or `scan`."""

    def loss(params, state, xs, targets):
        h, outputs = run(params, state, xs)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves((h, outputs)))

    return jax.value_and_grad(loss, (0, 1, 2))


@pytest.mark.parametrize("unroll", [None, 4])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(as_on_gpu, name, unroll):
    """By the plan of a GPU, and with any number of steps in a body, that of one step in a body."""
    problem = PROBLEMS["gru"]
    of, args = (problem.model, problem.loss), arguments(problem, 0, T, B)
    reset = np.random.default_rng(0).uniform(size=(T, B)) < 0.1
    got, want = (jax.jit(GRADIENTS[name](*of, unroll=u))(*args, reset=reset) for u in (unroll, 1))
    assert difference(got, want) <= 1e-12
    if name == "exact":
        assert difference(got, jb.reference.bptt(*of)(*args, reset=reset)) <= 1e-10


@pytest.mark.parametrize("truncation", [{}, {"k1": 9, "k2": 21}])
@pytest.mark.parametrize("unroll", [None, 3])
def test_scan_and_unroll(as_on_gpu, unroll, truncation):
    problem = PROBLEMS["lstm"]
    args = arguments(problem, 1, T, B)
    step = jax.vmap(problem.model.step, (None, 0, 0))

    def scanned(params, state, xs):
        return jb.scan(lambda h, x: step(params, h, x), state, xs, unroll=unroll, **truncation)

    def unrolled(unroll):
        return lambda *of: jb.unroll(problem.model, *of, unroll=unroll, **truncation)

    want = jax.jit(by_grad(unrolled(1), problem))(*args)
    for run in (scanned, unrolled(unroll)):
        assert difference(jax.jit(by_grad(run, problem))(*args), want) <= 1e-12


def test_what_steps_of_a_body_save_is_written_at_once(as_on_gpu):
    """One update of each saved array in a body of eight steps, not eight."""
    problem = PROBLEMS["lstm"]
    jaxpr = jax.make_jaxpr(jb.bptt(problem.model, problem.loss, window=24))(*arguments(problem, 0, 48, B)).jaxpr
    bodies = [
        e.params["jaxpr"].jaxpr for e in equations(jaxpr) if e.primitive.name == "scan" and e.params["length"] == 3
    ]
    writes = [sum(e.primitive.name == "dynamic_update_slice" for e in body.eqns) for body in bodies]
    blocks = [e.params for body in bodies for e in body.eqns if e.primitive.name == "scan"]
    assert writes == [2]  # h and c
    assert [(p["length"], p["unroll"]) for p in blocks] == [(BODY_ON_GPU, BODY_ON_GPU)]


def test_one_traced_function_is_right_for_each_platform():
    problem = PROBLEMS["gru"]
    args = arguments(problem, 0, 48, B)
    traced = jax.jit(jb.bptt(problem.model, problem.loss, window=24)).trace(*args)
    lowered = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    assert lowered["cuda"] != lowered["cpu"]
    alone = jax.jit(jb.bptt(problem.model, problem.loss, window=24, unroll=1)).lower(*args).as_text()
    for text in lowered.values():  # the plan of one platform is there, not all of them
        assert text.count("stablehlo.while") == alone.count("stablehlo.while")


def test_the_plan_of_a_gpu():
    plan = Plan(Windows(512, 32), "dots", lanes=1)
    assert on_gpu(plan, 32, 8, is_exact=True) == Plan(Windows(512, 64), "states", lanes=1)
    assert on_gpu(plan, 32, 8, is_exact=False) == Plan(Windows(512, 32), "states", lanes=1)
    assert on_gpu(plan, 32, 8, is_exact=True, save="dots", window=32) == plan
    once = Plan(Windows(12, 12), "dots", lanes=1)
    assert on_gpu(once, 32, 8, is_exact=True) == once
    assert on_gpu(once, 32, 8, is_exact=False) == once._replace(save="states")  # a window that is run alone
    assert default_window(997, 60, of_rows=ROWS_ON_GPU, body=4) == 32  # none near 34 divides 997
    assert default_window(1000, 1, of_rows=ROWS_ON_GPU, body=BODY_ON_GPU) == 40  # 50 is nearer, and no multiple of 8
    assert [default_bodies(equations).gpu for equations in (30, 100, 1000)] == [8, 4, 1]
    assert default_bodies(30).elsewhere == 1


def test_equations_inside_of_others_count():
    """A step with a loop in it is not repeated as often as one of as few equations."""

    def step(params, h, x):
        return jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h * params), h) + x, h

    read = split_step(step, 1.0, jnp.ones(2), jnp.ones(2))
    assert read.equations == count(jax.make_jaxpr(step)(1.0, jnp.ones(2), jnp.ones(2)).eqns)
    assert read.equations > 5


@pytest.mark.parametrize(
    "make", [jb.bptt, jb.state_gradients, lambda *of, **more: jb.truncated_bptt(*of, 2, 2, **more)]
)
def test_steps_of_a_body_are_a_number(make):
    problem = PROBLEMS["elman"]
    with pytest.raises(ValueError, match=r"^unroll: found 0, expected at least 1"):
        make(problem.model, problem.loss, unroll=0)
    with pytest.raises(TypeError, match=r"^unroll: found 'all' of type str, expected a positive integer"):
        make(problem.model, problem.loss, unroll="all")
