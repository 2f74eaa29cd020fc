"""`jb.scan` takes the place of `lax.scan`, word for word, in kinds of programs that people have."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jaxprs import equations
from problems import difference

import jax_bptt as jb

T, B, I, H = 9, 3, 2, 4


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Program(NamedTuple):
    """A loss that runs a recurrence by the scan that it is given, of params, init and xs."""

    loss: Callable[..., jax.Array]
    arguments: tuple[Any, Any, Any]


def rnn(scan, params, h, xs):
    """Written for a batch."""

    def body(h, x):
        h = jnp.tanh(h @ params["A"] + x @ params["B"] + params["b"][None])
        return h, h @ params["C"]

    h, outputs = scan(body, h, xs)
    return (outputs**2).sum() + h.sum()


def lstm(scan, params, state, xs):
    """Written for a batch, weights before the rows."""

    def body(state, x):
        h, c = state
        i, f, g, o = jnp.split((params["A"] @ h.T + params["B"] @ x.T).T + params["b"][None], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), h

    (_, c), hs = scan(body, state, xs)
    return (hs**3).sum() + (c**2).sum()


def mapped(scan, params, h, xs):
    """A step of one example under `vmap`, inside the body."""

    def step(h, x):
        h = jnp.tanh(params["A"] @ h + params["B"] @ x)
        return h, h.sum()

    h, outputs = scan(jax.vmap(step), h, xs)
    return (outputs**2).sum() + (h**2).sum()


def ode(scan, params, state, _):
    """No inputs, no batch: a pendulum by Runge and Kutta's method, and a controller."""

    def slope(s):
        push = jnp.tanh(params["w"] @ s) @ params["v"]
        return jnp.stack([s[1], -jnp.sin(s[0]) * params["g"] + push])

    def body(s, _):
        k1 = slope(s)
        k2 = slope(s + 0.05 * k1)
        k3 = slope(s + 0.05 * k2)
        k4 = slope(s + 0.1 * k3)
        s = s + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return s, (s**2).sum()

    s, costs = scan(body, state, None, length=T)
    return costs.sum() + s[0]


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    return spike(*primals), tangents[0] / (1 + jnp.abs(primals[0])) ** 2


def spiking(scan, params, state, xs):
    """Leaky integrate-and-fire units with a surrogate gradient, reset by what they fired."""

    class State(NamedTuple):
        v: jax.Array
        z: jax.Array

    def body(state, x):
        current = x @ params["B"] + state.z @ params["A"]
        v = params["leak"] * state.v + current - state.z
        z = spike(v - 0.5)
        return State(v, z), z @ params["C"]

    _, outputs = scan(body, State(*state), xs)
    return (jnp.tanh(outputs) ** 2).sum()


def attention(scan, params, state, xs):
    """Attention over a memory that is carried, and written to at one place each step."""

    def body(carry, x):
        memory, h, t = carry
        scores = jax.nn.softmax(memory @ (params["Q"] @ h))
        h = jnp.tanh(params["A"] @ h + params["B"] @ x + scores @ memory)
        memory = jax.lax.dynamic_update_index_in_dim(memory, 0.5 * h, t % 5, 0)
        return (memory, h, t + 1), None

    (memory, h, t), nothing = scan(body, (*state, jnp.asarray(0)), xs)
    assert nothing is None
    return (memory**2).sum() + h.sum() + t


def policy(scan, params, h, xs):
    """A return of discounted rewards, in episodes that begin anew; from the last step to the first."""

    def body(carry, x):
        observation, done = x
        h, ret = carry
        h, ret = jnp.where(done[:, None], params["h0"], h), jnp.where(done, 0, ret)
        h = jnp.tanh(h @ params["A"] + observation @ params["B"])
        logits = h @ params["C"]
        reward = jax.nn.log_softmax(logits)[:, 0]
        ret = reward + 0.9 * ret
        return (h, ret), {"return": ret, "greedy": jnp.argmax(logits, -1), "none": None}

    done = jnp.asarray(np.random.default_rng(9).uniform(size=(T, B)) < 0.3)
    _, out = scan(body, (h, jnp.zeros(B)), (xs, done), reverse=True)
    return (out["return"] ** 2).mean() + 0 * out["greedy"].sum()


@functools.partial(jax.tree_util.register_dataclass, data_fields=["u", "v"], meta_fields=[])
@dataclasses.dataclass
class Field:
    u: jax.Array
    v: jax.Array | None


def field(scan, params, u, xs):
    """A convolution over a field, which is a dataclass; forced by numbers."""

    def body(f, x):
        neighbours = jax.lax.conv_general_dilated(f.u, params["kernel"], (1,), "SAME")
        f = Field(f.u + 0.1 * jnp.tanh(neighbours) + x, None)
        return f, f.u.mean((1, 2))

    f, means = scan(body, Field(u, None), xs)
    return (means**2).sum() + (f.u**2).sum()


LINEN = linen.GRUCell(H, param_dtype=jnp.float64)
GRAPH, WEIGHTS = nnx.split(nnx.LSTMCell(I, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64))


def of_linen(scan, params, h, xs):
    h, outputs = scan(functools.partial(LINEN.apply, params), h, xs)
    return (outputs**2).sum() + h.sum()


def of_nnx(scan, params, state, xs):
    def body(state, x):
        return nnx.merge(GRAPH, params)(state, x)

    (c, _), outputs = scan(body, state, xs)
    return (outputs**2).sum() + c.sum()


PARAMS = {"A": normal(0, H, H), "B": normal(1, I, H), "b": normal(2, H), "C": normal(3, H, I), "h0": normal(4, H)}
PROGRAMS = {
    "rnn": Program(rnn, (PARAMS, normal(5, B, H), normal(6, T, B, I))),
    "lstm": Program(
        lstm,
        (
            {"A": normal(0, 4 * H, H), "B": normal(1, 4 * H, I), "b": normal(2, 4 * H)},
            (normal(5, B, H), normal(6, B, H)),
            normal(7, T, B, I),
        ),
    ),
    "mapped": Program(mapped, ({"A": normal(0, H, H), "B": normal(1, H, I)}, normal(5, B, H), normal(6, T, B, I))),
    "ode": Program(ode, ({"w": normal(0, H, 2), "v": normal(1, H), "g": jnp.asarray(9.8)}, normal(5, 2), None)),
    "spiking": Program(
        spiking, (PARAMS | {"leak": jnp.asarray(0.9)}, (normal(5, B, H), jnp.zeros((B, H))), normal(6, T, B, I))
    ),
    "attention": Program(
        attention,
        (
            {"A": normal(0, H, H), "Q": normal(1, H, H), "B": normal(2, H, I)},
            (normal(5, 5, H), normal(6, H)),
            normal(7, T, I),
        ),
    ),
    "policy": Program(policy, (PARAMS, normal(5, B, H), normal(6, T, B, I))),
    "linen": Program(
        of_linen, (LINEN.init(jax.random.key(0), normal(5, B, H), normal(6, B, I)), normal(5, B, H), normal(6, T, B, I))
    ),
    "nnx": Program(of_nnx, (WEIGHTS, (normal(5, B, H), normal(6, B, H)), normal(7, T, B, I))),
    "field": Program(field, ({"kernel": normal(0, I, I, 3)}, normal(5, B, I, 7), normal(6, T))),
}
OPTIONS = [{}, {"save": "dots"}, {"save": "states", "window": 4}, {"save": "boundaries"}, {"unroll": 3}]


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, o) for name in PROGRAMS for o in (OPTIONS if name in ("rnn", "attention", "policy") else OPTIONS[:1])],
    ids=str,
)
def test_is_lax_scan(name, options):
    loss, args = PROGRAMS[name]
    argnums = (0, 1, 2) if args[2] is not None else (0, 1)
    got = jax.jit(jax.value_and_grad(functools.partial(loss, functools.partial(jb.scan, **options)), argnums))(*args)
    want = jax.jit(jax.value_and_grad(functools.partial(loss, jax.lax.scan), argnums))(*args)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert difference(got, want) <= 1e-11


def by_loop(body, carry, xs, length=None, reverse=False):
    """The scan as a loop of Python: of `custom_jvp` functions, the second derivatives of `lax.scan` are others."""
    steps = length if xs is None else len(jax.tree.leaves(xs)[0])
    ys = []
    for t in reversed(range(steps)) if reverse else range(steps):
        carry, y = body(carry, jax.tree.map(operator.itemgetter(t), xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *(ys[::-1] if reverse else ys))


@pytest.mark.parametrize("name", ["rnn", "ode", "spiking", "attention", "policy", "linen", "nnx"])
def test_hessian_vector_products(name):
    loss, args = PROGRAMS[name]
    direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), args[0])

    def forward_over_reverse(scan):
        gradient = jax.grad(functools.partial(loss, scan))
        return jax.jvp(lambda params: gradient(params, *args[1:]), (args[0],), (direction,))[1]

    def reverse_over_reverse(scan):
        gradient = jax.grad(functools.partial(loss, scan))
        return jax.grad(lambda p: sum(map(jnp.vdot, *map(jax.tree.leaves, (gradient(p, *args[1:]), direction)))))(
            args[0]
        )

    want = jax.jit(forward_over_reverse, static_argnums=0)(by_loop)
    for derivative in (forward_over_reverse, reverse_over_reverse):
        assert difference(jax.jit(derivative, static_argnums=0)(jb.scan), want) <= 1e-9


def test_hessian():
    args = PROGRAMS["rnn"].arguments
    got, want = (jax.jit(jax.hessian(functools.partial(rnn, scan)))(*args) for scan in (jb.scan, jax.lax.scan))
    assert difference(got, want) <= 1e-9


@pytest.mark.parametrize("name", ["rnn", "spiking", "attention"])
def test_vmap(name):
    """Over params, init and xs, and over one of them."""
    loss, args = PROGRAMS[name]
    several = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, -a]), args)
    for in_axes in (0, (None, 0, None), (0, None, None), (None, None, 0)):
        given = (
            several
            if in_axes == 0
            else tuple(s if a == 0 else g for s, g, a in zip(several, args, in_axes, strict=True))
        )
        got, want = (
            jax.jit(jax.vmap(jax.grad(functools.partial(loss, scan), (0, 1, 2)), in_axes))(*given)
            for scan in (jb.scan, jax.lax.scan)
        )
        assert difference(got, want) <= 1e-11


def test_checkpoint_and_a_scan_of_scans():
    params, h, xs = PROGRAMS["rnn"].arguments

    def loss(scan, params):
        def chunk(h, xs):
            return scan(lambda h, x: (jnp.tanh(h @ params["A"] + x @ params["B"]), h.sum()), h, xs)

        h_T, sums = scan(jax.checkpoint(chunk), h, xs.reshape(3, 3, B, I))
        return (h_T**2).sum() + (sums**2).sum()

    got, want = (jax.grad(functools.partial(loss, scan))(params) for scan in (jb.scan, jax.lax.scan))
    assert difference(got, want) <= 1e-11


def test_eval_shape_and_export():
    loss, args = PROGRAMS["rnn"]
    gradient = jax.grad(functools.partial(loss, jb.scan))
    assert jax.eval_shape(gradient, *args) == jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args[0])
    exported = jax.export.export(jax.jit(gradient))(*args)
    assert difference(exported.call(*args), gradient(*args)) <= 1e-12


@pytest.mark.parametrize("symbolic", ["b", "t"])
def test_export_with_symbolic_shapes(symbolic):
    loss, args = PROGRAMS["rnn"]
    gradient = jax.jit(jax.grad(functools.partial(loss, jb.scan)))
    (n,) = jax.export.symbolic_shape(symbolic)
    batch, steps = (n, T) if symbolic == "b" else (B, n)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args[0])
    h, xs = jax.ShapeDtypeStruct((batch, H), jnp.float64), jax.ShapeDtypeStruct((steps, batch, I), jnp.float64)
    exported = jax.export.export(gradient)(shapes, h, xs)
    for length, number in ((T, B), (T + 4, B)) if symbolic == "t" else ((T, B), (T, B + 20)):
        given = args[0], normal(5, number, H), normal(6, length, number, I)
        assert difference(exported.call(*given), gradient(*given)) <= 1e-12


@pytest.mark.parametrize(
    ("init", "xs", "length"),
    [
        (0.0, jnp.arange(5.0), None),  # weak types
        (0, jnp.arange(5), None),
        (jnp.float32(1), np.arange(5), 5),
        ((), jnp.arange(5.0), None),  # no carry
        (None, None, 4),
        ((1, 2.0), None, 0),
        (jnp.zeros((0, 3)), jnp.zeros((4, 0, 3)), None),  # no elements
        (jnp.ones(2), jnp.zeros((0, 2)), None),
        (jax.random.key(0), jax.random.split(jax.random.key(1), 3), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("reverse", [False, True])
def test_runs_as_lax_scan_does(init, xs, length, reverse):
    def body(carry, x):
        key = any(jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key) for a in jax.tree.leaves(carry))
        if key:
            carry = jax.random.fold_in(carry, 3)
            return carry, (jax.random.uniform(carry), x)
        return jax.tree.map(lambda c: c * 2 + 1, carry), (carry, x, None)

    got, want = (scan(body, init, xs, length, reverse) for scan in (jb.scan, jax.lax.scan))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert (a == b).all()


@pytest.mark.parametrize(
    "arguments",
    [
        (lambda c, x: (c, x), 0.0, None),
        (lambda c, x: (c, x), 0.0, (jnp.ones(3), jnp.ones(4))),
        (lambda c, x: (c, x), 0.0, jnp.ones(3), 4),
        (lambda c, x: c, jnp.ones(3), jnp.ones(3)),
        (lambda c, x: ((c, c), x), jnp.ones(3), jnp.ones(3)),
        (lambda c, x: (c[:1], x), jnp.ones(3), jnp.ones(3)),
        (lambda c, x: (c, x), "text", jnp.ones(3)),
        (3, 0.0, jnp.ones(3)),
        (lambda c, x: (c, x), 0.0, jnp.ones(3), None, False, -1),
    ],
)
def test_errors_are_those_of_lax_scan(arguments):
    with pytest.raises((TypeError, ValueError)) as wanted:
        jax.lax.scan(*arguments)
    with pytest.raises(wanted.type) as found:
        jb.scan(*arguments)
    assert str(found.value).splitlines()[0] == str(wanted.value).splitlines()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 2}, "k1, k2: found 2 and None, expected both"),
        ({"k1": 4, "k2": 3}, "k2: found 3, expected at least k1 = 4"),
        ({"save": "all"}, "save: found 'all', expected one of"),
        ({"window": 0}, "window: found 0, expected at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        jb.scan(lambda c, x: (c, x), 0.0, jnp.ones(3), **options)


@pytest.mark.parametrize(
    ("k1", "k2", "save"), [(3, 3, "dots"), (2, 5, "boundaries"), (4, 9, "dots"), (3, 20, "states")]
)
@pytest.mark.parametrize("name", ["rnn", "attention", "ode"])
def test_truncation_is_that_of_windows(name, k1, k2, save):
    """By the oracle: each window from a constant, its newest cotangents alone; the last carry's in the last window."""
    loss, args = PROGRAMS[name]

    def windows(body, init, xs, length=None):
        steps = T if xs is None else xs.shape[0]
        _, trajectory = jax.lax.scan(lambda c, x: (body(c, x)[0], c), init, xs, steps)
        ys, carry = [], init
        for end in range(k1, steps + k1, k1):
            start, stop = max(0, end - k2), min(end, steps)
            begin = init if start == 0 else jax.lax.stop_gradient(jax.tree.map(operator.itemgetter(start), trajectory))
            part = None if xs is None else xs[start:stop]
            carry, y = jax.lax.scan(body, begin, part, stop - start)
            ys.append(jax.tree.map(operator.itemgetter(slice(end - k1 - start, None)), y))
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *ys)

    ours = functools.partial(jb.scan, k1=k1, k2=k2, save=save)
    argnums = (0, 1, 2) if args[2] is not None else (0, 1)
    got, want = (jax.jit(jax.value_and_grad(functools.partial(loss, scan), argnums))(*args) for scan in (ours, windows))
    assert difference(got, want) <= 1e-11


@pytest.mark.parametrize(
    "more", [(4.0,), (np.int32(4),), (jnp.int32(4),), (4, False, 0), (4, False, True), (4, False, False)], ids=str
)
@pytest.mark.parametrize("options", [{}, {"window": 4}], ids=["as it is", "cut"])
def test_lengths_and_unrolling_of_other_types(more, options):
    def body(c, _):
        return 2 * c, c

    got = jb.scan(body, jnp.ones(2), None, *more, **options)
    assert difference(got, jax.lax.scan(body, jnp.ones(2), None, *more)) == 0


def test_all_steps_of_a_window_in_one_body():
    def loss(h):
        last, ys = jb.scan(lambda h, _: (jnp.sin(h), h), h, None, 12, unroll=True, window=4, save="states")
        return last.sum() * ys.sum()

    found = equations(jax.make_jaxpr(jax.grad(loss))(jnp.ones(2)).jaxpr)
    loops = [e.params for e in found if e.primitive.name == "scan"]
    of_steps = [(p["length"], p["unroll"]) for p in loops if p["length"] == 4]
    assert of_steps == [(4, 4), (4, 4)]


def test_a_callback_that_is_not_to_be_mapped():
    def body(c, x):
        return c + x, jax.pure_callback(lambda v: np.asarray(v) * 2, jax.ShapeDtypeStruct(c.shape, c.dtype), c)

    args = normal(0, H), normal(1, T, H)
    assert difference(jb.scan(body, *args), jax.lax.scan(body, *args)) == 0


@pytest.mark.parametrize("options", [{}, {"k1": T, "k2": T}, {"save": "boundaries"}])
def test_a_collective_along_an_axis_of_vmap(options):
    params, h, xs = normal(0, H, H), normal(1, B, H), normal(2, T, B, H)

    def loss(scan, params, h, xs):
        def body(h, x):
            h = jnp.tanh(h @ params + x)
            h = h - jax.lax.pmean(h, "batch")
            return h, h

        h, hs = scan(body, h, xs)
        return (hs**3).sum() + h.sum()

    ours = functools.partial(jb.scan, **options)
    got, want = (
        jax.jit(jax.vmap(jax.grad(functools.partial(loss, scan)), (None, 0, 1), axis_name="batch"))(params, h, xs)
        for scan in (ours, jax.lax.scan)
    )
    assert difference(got, want) <= 1e-12


def test_a_batch_written_body_makes_one_product_of_time_and_batch():
    """The gradients of its weights are sums over all rows of a window, none of one step."""
    loss, args = PROGRAMS["rnn"]
    text = str(jax.make_jaxpr(jax.grad(functools.partial(loss, functools.partial(jb.scan, window=T))))(*args))
    assert f"f64[{T * B},{I}]" in text
    assert f"f64[{T * B},{H}]" in text


def test_outputs_that_nobody_differentiates_are_not_read_backwards():
    params, h, xs = PROGRAMS["rnn"].arguments

    def loss(params, use):
        def body(h, x):
            h = jnp.tanh(h @ params["A"] + x @ params["B"])
            return h, (h.sum(), jnp.sin(h @ params["C"]))

        _, (sums, metrics) = jb.scan(body, h, xs)
        return (sums**2).sum() + (metrics.sum() if use else 0), metrics

    for use in (False, True):
        compiled = jax.jit(jax.grad(lambda params, use=use: loss(params, use)[0])).lower(params).compile()
        assert ("cosine" in compiled.as_text()) == use


def test_what_is_not_asked_for_is_not_computed():
    """A gradient with respect to init alone makes no sum over rows."""
    loss, args = PROGRAMS["rnn"]
    text = str(jax.make_jaxpr(jax.grad(functools.partial(loss, functools.partial(jb.scan, window=T)), 1))(*args))
    assert f"f64[{T * B}," not in text


def test_what_a_step_is_traced_in_holds():
    """Keys draw other numbers under another `threefry_partitionable`."""

    def loss(scan, h, keys):
        def body(h, key):
            with jax.threefry_partitionable(False):
                drawn = jax.random.normal(key, (3,))
            return jnp.tanh(h * drawn), h * jnp.sin(jnp.asarray(2.0) * drawn)

        return (scan(body, h, keys)[1] ** 2).sum()

    args = jnp.arange(3.0), jax.random.split(jax.random.key(0), 5)
    got, want = (jax.value_and_grad(functools.partial(loss, scan))(*args) for scan in (jb.scan, jax.lax.scan))
    assert difference(got, want) <= 1e-12
