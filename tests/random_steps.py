"""Random steps: small programs as plain data, and the step that a program is.

A program computes registers, each of a kind, which says its shape and dtype. First come params, constants that the step
closes over, the state and the input, then one register for each instruction, which applies an operation of `OPERATIONS`
to registers of the kinds that it asks for, by itself or in a call of `CALLS`. The new state and the output are
registers. So hypothesis can draw a program, make it smaller and print it.

Nothing overflows: what grows is computed of bounded registers alone, and a state leaf is bounded. No derivative is
ambiguous: kinks lie at odd numbers, and what is compared is told apart by odd offsets.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

N, M, V = 3, 5, 7

SHAPES = {
    "scalar": ((), "float64"),
    "vector": ((N,), "float64"),
    "wide": ((M,), "float64"),
    "square": ((N, N), "float64"),
    "matrix": ((M, N), "float64"),
    "table": ((V, N), "float64"),
    "complex": ((N,), "complex128"),
    "single": ((N,), "float32"),
    "index": ((), "int32"),
    "flag": ((), "bool"),
    "key": ((), "key"),
}
FLOATS = ("scalar", "vector", "wide", "square", "matrix")
INEXACT = (*FLOATS, "table", "complex", "single")

_LETTERS = {
    "s": "scalar",
    "v": "vector",
    "w": "wide",
    "q": "square",
    "m": "matrix",
    "t": "table",
    "c": "complex",
    "f": "single",
    "i": "index",
    "b": "flag",
    "k": "key",
}

PARAMS = ("vector", "square", "scalar", "wide", "matrix", "square", "table", "complex")
_CONSTANT_RNG = np.random.default_rng(0)
CONSTANTS = {kind: _CONSTANT_RNG.normal(size=SHAPES[kind][0]) for kind in ("vector", "square", "matrix")}

ODD = 0.0917
"""Where kinks and thresholds are."""


def ramp(a: Any) -> Any:
    """`a` with offsets that tell equal entries apart."""
    return a + np.sqrt(2) / 7 * np.arange(a.size).reshape(a.shape)


class Operation(NamedTuple):
    reads: tuple[str, ...]
    makes: str
    function: Callable
    grows: str
    """Whether the result is bounded: "never" grows, "keeps" the bounds of what is read, or "always" grows."""


OPERATIONS: dict[str, Operation] = {}


def _add(grows: str, signature: str, **functions: Callable) -> None:
    reads, makes = signature.split(">")
    for name, function in functions.items():
        operation = Operation(tuple(_LETTERS[r] for r in reads), _LETTERS[makes], function, grows)
        assert OPERATIONS.setdefault(name, operation) is operation


def _for_all(kinds: str, grows: str, letters: str, **functions: Callable) -> None:
    """Operations of several kinds: `a` in `letters` stands for each of them."""
    for kind in kinds:
        of_kind = {f"{name} of {_LETTERS[kind]}": function for name, function in functions.items()}
        _add(grows, letters.replace("a", kind), **of_kind)


# Products.


def _gates(q, r, v, u):
    a, b = jnp.split(jnp.concatenate([q, r]) @ v, 2)
    return jax.nn.sigmoid(a) * jnp.tanh(b) + u


_add("always", "qv>v", matrix_vector=lambda q, v: q @ v, same_weight_twice=lambda q, v: q @ jnp.tanh(q @ v))
_add("always", "qv>v", both_sides=lambda q, v: q @ v + v @ q, transposed_product=lambda q, v: q.T @ v)
_add("always", "qv>v", normalised_product=lambda q, v: (q / jnp.sqrt(1 + (q * q).sum())) @ v)
_add("always", "vq>v", vector_matrix=lambda v, q: v @ q)
_add("always", "mv>w", wider=lambda m, v: m @ v, rows_by_vmap=lambda m, v: jax.vmap(lambda r: jnp.tanh(r) @ v)(m))
_add("always", "mw>v", narrower=lambda m, w: w @ m, narrower_transposed=lambda m, w: m.T @ w)
_add("always", "mq>m", matrix_matrix=lambda m, q: m @ q, matrix_transposed=lambda m, q: m @ q.T)
_add("always", "qq>q", square_square=lambda q, r: q @ r)
_add("always", "m>q", gram=lambda m: m.T @ m / M)
_add("always", "mm>q", cross=lambda m, n: m.T @ n / M)
_add("always", "wv>m", outer=jnp.outer)
_add("always", "vv>q", outer_square=jnp.outer)
_add("always", "vv>s", dot=lambda v, u: v @ u)
_add("always", "v>s", self_dot=lambda v: v @ v)
_add("always", "v>v", self_product=lambda v: v * v, cube=lambda v: v**3)
_add("always", "mwv>s", einsum_scalar=lambda m, w, v: jnp.einsum("ij,i,j", m, w, v))
_add("always", "mqv>w", einsum_chain=lambda m, q, v: jnp.einsum("ij,jk,k->i", m, q, v))
_add("always", "qv>q", einsum_scaled=lambda q, v: jnp.einsum("ij,j->ji", q, v))
_add("always", "mm>m", einsum_same=lambda m, n: jnp.einsum("ij,ij->ij", m, n))
_add("always", "wv>w", convolved=lambda w, v: jnp.convolve(w, v, mode="same"))
_add("always", "qv>v", solved=lambda q, v: jnp.linalg.solve(4 * np.eye(N) + jnp.tanh(q), v))
_add("always", "qqvv>v", gates=_gates)
_for_all("vwm", "always", "sa>a", scaled=lambda s, a: jnp.broadcast_to(s, a.shape) * a)

# Weights computed from others, of params as a rule.

_add("never", "q>q", normalised=lambda q: q / jnp.sqrt(1 + (q * q).sum()))
_add("never", "q>q", row_softmax=lambda q: jax.nn.softmax(q, axis=1))
_add("keeps", "q>q", transposed=lambda q: q.T, lower=jnp.tril)
_add("never", "v>v", decay_rates=lambda v: jnp.exp(-jnp.exp(jnp.sin(v))))
_add("keeps", "v>q", diagonal=jnp.diag)
_add("always", "qvv>q", fast_weight=lambda q, v, u: 0.9 * q + jnp.outer(jnp.tanh(v), u))

# Elementwise.

_for_all("svwqm", "never", "a>a", tanh=jnp.tanh, sigmoid=jax.nn.sigmoid, sin=jnp.sin)
_for_all("svwqm", "never", "a>a", exponential=lambda a: jnp.exp(jnp.sin(a)))
_for_all("svwqm", "keeps", "a>a", relu=lambda a: jax.nn.relu(a - ODD), negative=lambda a: -a)
_for_all("svwqm", "never", "a>a", clipped=lambda a: jnp.clip(a, -ODD, 8 * ODD))
_for_all("svwqm", "always", "aa>a", added=lambda a, b: a + b, subtracted=lambda a, b: a - b, product=lambda a, b: a * b)
_for_all("svwqm", "always", "aa>a", divided=lambda a, b: a / (1.5 + jnp.sin(b)))
_for_all("svwqm", "keeps", "aa>a", blended=lambda a, b: 0.75 * a + 0.25 * b)
_for_all("svwqm", "keeps", "aa>a", larger=lambda a, b: jnp.maximum(a, 0.7 * b + ODD))
_for_all("svwqm", "keeps", "aa>a", smaller=lambda a, b: jnp.minimum(0.9 * a, b / 2 - ODD))
_for_all("svwqm", "keeps", "aa>a", where_large=lambda a, b: jnp.where(a > ODD, b, 0.3 * a))
_for_all("vwm", "keeps", "baa>a", chosen=lambda p, a, b: jnp.where(p, a, b))
_for_all("vw", "keeps", "a>a", halves=lambda a: jnp.select([a > 5 * ODD, a > ODD], [a / 2, a / 3], 0.4 * a))
_add("keeps", "v>v", softplus=jax.nn.softplus, gelu=jax.nn.gelu, silu=jax.nn.silu, leaky=jax.nn.leaky_relu)
_add("keeps", "v>v", distance=lambda v: jnp.abs(v - ODD), root=lambda v: jnp.sqrt(1 + v * v), arctan=jnp.arctan)
_add("never", "v>v", logarithm=lambda v: jnp.log(1.5 + jnp.sin(v)), soft_sign=jax.nn.soft_sign)
_add("keeps", "v>v", power=lambda v: (1.5 + jnp.sin(v)) ** 1.5, reciprocal=lambda v: 1 / (1.5 + jnp.cos(v)))

# Reductions.


def _layer_norm(v):
    return (v - v.mean()) / jnp.sqrt(v.var() + 0.1)


_for_all("vw", "always", "a>s", summed=jnp.sum, log_sum_exp=lambda a: jax.nn.logsumexp(a))
_for_all("vw", "keeps", "a>s", averaged=jnp.mean, largest=lambda a: ramp(a).max(), least=lambda a: ramp(a).min())
_for_all("vw", "always", "a>s", norm=lambda a: jnp.linalg.norm(a + 3), multiplied=jnp.prod, variance=jnp.var)
_for_all("vw", "never", "a>a", softmax=jax.nn.softmax, layer_norm=_layer_norm)
_for_all("vw", "always", "a>a", cumulated=jnp.cumsum, cumulative_product=jnp.cumprod, log_softmax=jax.nn.log_softmax)
_for_all("vw", "keeps", "a>a", sorted=lambda a: jnp.sort(ramp(a)), running_maximum=lambda a: jax.lax.cummax(ramp(a)))
_add("always", "m>w", row_sums=lambda m: m.sum(1), row_norms=lambda m: jnp.sqrt(1 + (m * m).sum(1)))
_add("keeps", "m>v", column_means=lambda m: m.mean(0), column_maxima=lambda m: ramp(m).max(0))
_add("always", "q>s", trace=jnp.trace)
_add("never", "mv>v", attention=lambda m, v: jnp.tanh(jax.nn.softmax(m @ v) @ m))

# Gathers and shapes.


def _shifted_in(m, v):
    return m.at[1:].set(m[:-1]).at[0].set(v)


_add("keeps", "ti>v", embedded=lambda t, i: t[i % V], embedded_by_product=lambda t, i: jax.nn.one_hot(i % V, V) @ t)
_add("keeps", "vi>s", picked=lambda v, i: v[i % N])
_add("keeps", "mi>v", row=lambda m, i: m[i % M], row_taken=lambda m, i: jnp.take(m, i % M, axis=0))
_add("keeps", "wi>v", window=lambda w, i: jax.lax.dynamic_slice(w, (i % 3,), (N,)))
_add("keeps", "wis>w", put=lambda w, i, s: w.at[i % M].set(s))
_add(
    "always", "wis>w", put_by_sum=lambda w, i, s: w.at[i % M].add(s), put_by_product=lambda w, i, s: w.at[i % M].mul(s)
)
_add("keeps", "miv>m", row_put=lambda m, i, v: m.at[i % M].set(v))
_add("keeps", "miv>m", row_updated=lambda m, i, v: jax.lax.dynamic_update_slice(m, v[None], (i % M, jnp.int32(0))))
_add("keeps", "mv>m", delay_line=_shifted_in, delay_by_roll=lambda m, v: jnp.roll(m, 1, axis=0).at[0].set(v))
_add("keeps", "w>w", rolled=lambda w: jnp.roll(w, 2), flipped=lambda w: w[::-1])
_add("keeps", "w>v", sliced=lambda w: w[1:4], strided=lambda w: w[::2], gathered=lambda w: w[np.asarray([4, 0, 0])])
_add("keeps", "vs>w", concatenated=lambda v, s: jnp.concatenate([v, jnp.stack([s, -s])]))
_add("keeps", "v>w", padded=lambda v: jnp.pad(v, (1, 1)))
_add("keeps", "w>v", split_apart=lambda w: jnp.split(w, [1, 4])[1])
_add("keeps", "vv>v", interleaved=lambda v, u: jnp.stack([v, u]).reshape(-1)[1:4])
_add("keeps", "s>v", repeated=lambda s: jnp.broadcast_to(s, (N,)))
_add("keeps", "v>m", tiled=lambda v: jnp.tile(v[None], (M, 1)))
_add("keeps", "m>m", reshaped=lambda m: m.T.reshape(M, N), turned=lambda m: m[:, ::-1])
_add("keeps", "m>w", column=lambda m: m[:, 1])
_add("keeps", "q>v", diagonal_of=jnp.diagonal, second_row=lambda q: q[1])
_add("keeps", "vvv>q", stacked=lambda u, v, w: jnp.stack([u, v, w], axis=1))

# Integers, booleans and keys.


def _halvings(i):
    return jax.lax.while_loop(lambda c: c[0] > 0, lambda c: (c[0] // 2, c[1] + 1), (i, jnp.zeros_like(i)))[1]


def _dropped(k, v):
    return jnp.where(jax.random.bernoulli(k, 0.6, v.shape), v / 0.6, 0)


_add("never", "i>i", next_index=lambda i: (i + 1) % 40, halvings=_halvings)
_add("never", "ii>i", other_index=lambda i, j: (2 * i + j) % 11)
_add("never", "v>i", argmax=lambda v: jnp.argmax(ramp(v)).astype("int32"))
_add("never", "b>i", as_index=lambda b: b.astype("int32"))
_add("never", "i>b", even=lambda i: i % 2 == 0)
_add("never", "s>b", is_large=lambda s: s > ODD)
_add("never", "b>b", inverted=jnp.logical_not)
_add("never", "bb>b", one_of=jnp.logical_xor)
_add("never", "k>k", next_key=lambda k: jax.random.split(k)[0], other_key=lambda k: jax.random.split(k, 3)[2])
_add("never", "ki>k", folded=jax.random.fold_in)
_add("never", "k>b", coin=lambda k: jax.random.bernoulli(k, 0.5))
_add("never", "k>i", dice=lambda k: jax.random.randint(k, (), 0, 6, "int32"))
_add("never", "k>v", noise=lambda k: jnp.tanh(jax.random.normal(k, (N,), "float64")))
_add("keeps", "kv>v", dropout=_dropped)
_add("keeps", "iv>v", scaled_by_index=lambda i, v: v * (i % 3).astype("float64") / 2)
_add("keeps", "i>w", one_hot=lambda i: jax.nn.one_hot(i % M, M, dtype="float64"))
_add("keeps", "bv>v", gated_by_flag=lambda b, v: v * b.astype("float64"))

# Complex numbers and single precision.

_add("never", "c>c", complex_squash=lambda c: c / jnp.sqrt(1 + c.real**2 + c.imag**2))
_add("keeps", "cs>c", rotated=lambda c, s: c * (0.9 * jnp.exp(1j * s)))
_add("keeps", "cv>c", complex_decay=lambda c, v: c * jnp.exp(-jnp.exp(jnp.sin(v)) + 0.3j))
_add("keeps", "vv>c", made_complex=jax.lax.complex)
_add("keeps", "c>v", real=jnp.real, imaginary=jnp.imag)
_add("always", "c>v", squared_size=lambda c: (c * c.conj()).real)
_add("always", "cc>c", complex_product=lambda c, d: c * d, complex_sum=lambda c, d: c + d.conj())
_add("always", "qc>c", complex_matrix_vector=lambda q, c: q.astype("complex128") @ c)
_add("never", "v>f", to_single=lambda v: jnp.tanh(v.astype("float32")))
_add("keeps", "f>v", to_double=lambda f: f.astype("float64"))
_add("never", "qf>f", single_matrix_vector=lambda q, f: jnp.tanh(q.astype("float32") @ f))
_add("keeps", "ff>f", single_blended=lambda f, g: f / 2 - g / 4)

# Derivatives of one's own, loops and branches.


@jax.custom_vjp
def _spike(v):
    return (v > ODD).astype(v.dtype)


_spike.defvjp(lambda v: (_spike(v), v), lambda v, bar: (bar / (1 + (3 * v) ** 2),))


@jax.custom_jvp
def _spike_by_jvp(v):
    return (v > ODD).astype(v.dtype)


_spike_by_jvp.defjvp(lambda v, dot: (_spike_by_jvp(*v), dot[0] * jnp.exp(-(v[0] ** 2))))


@jax.custom_vjp
def clip_gradient(v):
    """The same value; its cotangent is clipped: not linear in it, as JAX expects, but common."""
    return v * 1


clip_gradient.defvjp(lambda v: (clip_gradient(v), None), lambda _, bar: (jnp.clip(bar, -0.05, 0.05),))


def _inner_recurrence(q, v, m):
    h, _ = jax.lax.scan(lambda h, row: (jnp.tanh(q @ h + row), None), v, m)
    return h


def _inner_outputs(q, m):
    _, hs = jax.lax.scan(lambda h, row: ((h := jnp.tanh(q @ h + row)), h.sum()), jnp.zeros(N), m)
    return hs


def _iterated(q, v):
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.sin(q @ h + 0.1 * i), v)


def _either(p, q, v):
    return jax.lax.cond(p, lambda q, v: q @ v, lambda q, v: v * 0.5, q, v)


def _switched(i, q, v):
    return jax.lax.switch(i % 3, [lambda q, v: q @ v, lambda q, v: jnp.sin(v), lambda q, v: v @ q], q, v)


_add("never", "v>v", spike=_spike, spike_by_jvp=_spike_by_jvp)
_add("keeps", "v>v", stopped=jax.lax.stop_gradient)
_add("keeps", "v>v", rounded=lambda v: v + jax.lax.stop_gradient(jnp.round(v + ODD) - v))
_add("never", "qvm>v", inner_recurrence=_inner_recurrence)
_add("never", "qm>w", inner_outputs=_inner_outputs)
_add("never", "qv>v", iterated=_iterated)
_add("always", "bqv>v", either=_either)
_add("always", "iqv>v", switched=_switched)
_add("always", "sqv>v", either_by_value=lambda s, q, v: _either(s > ODD, q, v))
_add("never", "m>m", mapped=lambda m: jax.lax.map(lambda row: jnp.tanh(row + row[::-1]), m))
_add("always", "m>m", associative=lambda m: jax.lax.associative_scan(jnp.add, m))

NOT_LINEAR = Operation(("vector",), "vector", clip_gradient, "keeps")


# Calls: ways to apply an operation.


def _plain(function, *values):
    return function(*values)


def _nested_jit(function, *values):
    return jax.jit(lambda *values: jax.jit(function)(*values) * 1)(*values)


def _cond(function, *values):
    return jax.lax.cond(
        _deciding(values) > ODD, lambda *values: function(*values), lambda *values: -0.5 * function(*values), *values
    )


def _switch(function, *values):
    branches = [lambda *values, s=s: s * function(*values) for s in (0.5, -1.0, 0.8)]
    place = (_deciding(values) > ODD).astype("int32") + (_deciding(values) > -ODD)
    return jax.lax.switch(place, branches, *values)


def _deciding(values):
    return sum((jnp.sum(jnp.sin(v)) for v in values if v.dtype == jnp.float64), jnp.zeros(()))


def _scan(function, *values):
    zeros = jnp.zeros_like(function(*values))
    scales = jnp.asarray([0.3, 0.6], zeros.real.dtype)
    return jax.lax.scan(lambda c, s: (c / 2 + s * function(*values), None), zeros, scales)[0]


def _fori_loop(function, *values):
    zeros = jnp.zeros_like(function(*values))
    return jax.lax.fori_loop(0, 2, lambda _, c: 0.5 * (c + function(*values)), zeros)


def _custom_vjp(function, *values):
    @jax.custom_vjp
    def surrogate(*values):
        return function(*values)

    def backwards(pull, bar):
        return tuple(None if b.dtype == jax.dtypes.float0 else 0.7 * b for b in pull(bar))

    surrogate.defvjp(lambda *values: jax.vjp(function, *values), backwards)
    return surrogate(*values)


def _custom_jvp(function, *values):
    @jax.custom_jvp
    def surrogate(*values):
        return function(*values)

    @surrogate.defjvp
    def rule(values, tangents):
        value, tangent = jax.jvp(function, values, tangents)
        return value, 0.7 * tangent

    return surrogate(*values)


CALLS = {
    "plain": _plain,
    "jit": lambda function, *values: jax.jit(function)(*values),
    "nested jit": _nested_jit,
    "checkpoint": lambda function, *values: jax.checkpoint(function)(*values),
    "cond": _cond,
    "switch": _switch,
    "scan": _scan,
    "fori_loop": _fori_loop,
    "custom_vjp": _custom_vjp,
    "custom_jvp": _custom_jvp,
    "vmap": lambda function, *values: jax.vmap(function)(*(jnp.stack([v, v]) for v in values))[1],
}


RARE = {name for name, of in OPERATIONS.items() if not {*of.reads, of.makes} <= {*FLOATS}}


def can_call(call: str, operation: Operation) -> bool:
    """Whether an operation can be applied in a call: JAX's own limits."""
    if call == "custom_jvp":  # a branch cannot have integers in it then
        return {*operation.reads, operation.makes} <= {*INEXACT}
    return operation.makes in INEXACT and not (call == "custom_vjp" and "key" in operation.reads)


# Programs.


class Instruction(NamedTuple):
    operation: str
    reads: tuple[int, ...]
    call: str = "plain"


class Program(NamedTuple):
    """A step. Registers are counted from 0: params, constants, state, input, instructions."""

    state: tuple[str, ...]
    x: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    new_state: tuple[int, ...]
    outputs: tuple[int, ...]

    def kinds(self) -> list[str]:
        """Those of all registers."""
        made = [operation(i).makes for i in self.instructions]
        return [*PARAMS, *CONSTANTS, *self.state, *self.x, *made]

    def first(self, what: str) -> int:
        """The first register of "state", "x" or "instructions"."""
        sizes = [len(PARAMS) + len(CONSTANTS), len(self.state), len(self.x)]
        return sum(sizes[: 1 + ["state", "x", "instructions"].index(what)])

    def live(self) -> set[int]:
        """The registers on which new state or outputs depend."""
        found = {*self.new_state, *self.outputs}
        for place, instruction in reversed([*enumerate(self.instructions, self.first("instructions"))]):
            if place in found:
                found.update(instruction.reads)
        return found

    def moving(self) -> set[int]:
        """The registers that depend on state or input."""
        found = set(range(self.first("state"), self.first("instructions")))
        for place, instruction in enumerate(self.instructions, self.first("instructions")):
            if found.intersection(instruction.reads):
                found.add(place)
        return found

    def single(self) -> bool:
        """Whether anything is in single precision."""
        return "single" in self.kinds()


def family_of(name: str) -> str:
    """An operation's name without what it is of."""
    return name.split(" of ")[0]


def operation(instruction: Instruction) -> Operation:
    return NOT_LINEAR if instruction.operation == "clipped_gradient" else OPERATIONS[instruction.operation]


def registers(program: Program, params: Any, state: Any, x: Any, given: dict[int, Any] | None = None) -> list[Any]:
    """The values of all registers; those that are given are not computed."""
    given = given or {}
    values = []
    for value in (*params, *CONSTANTS.values(), *state, *x):
        values.append(given.get(len(values), value))
    for instruction in program.instructions:
        if len(values) in given:
            values.append(given[len(values)])
        else:
            read = (jnp.asarray(values[i]) for i in instruction.reads)
            values.append(CALLS[instruction.call](operation(instruction).function, *read))
    return values


def step_of(program: Program) -> Callable:
    """`step(params, state, x) -> (state, output)`."""

    def step(params, state, x):
        values = registers(program, params, state, x)
        return tuple(values[i] for i in program.new_state), output_of(program, values)

    return step


def output_of(program: Program, values: list[Any]) -> Any:
    """A plain array where there is one, else a pytree."""
    first, *others = (values[i] for i in program.outputs)
    return {"first": first, "others": others} if others else first


def loss(output: Any, target: Any) -> jax.Array:
    """Of floating-point outputs their distance from targets; an integer or boolean one scales it."""
    total, scale = jnp.zeros(()), jnp.ones(())
    for y, aim in zip(jax.tree.leaves(output), target, strict=True):
        if jnp.issubdtype(y.dtype, jnp.inexact):
            away = y - aim
            total += (away * away.conj()).real.sum() / 2 + jnp.sin(away.real).sum()
        else:
            scale += (y % 3 if y.dtype == jnp.int32 else y).astype("float64") * aim.sum()
    return total * scale


# Strategies.

STATE_KINDS = (*FLOATS, "vector", "vector", "wide", "index", "flag", "key", "complex", "single")
X_KINDS = ("vector", "wide", "scalar", "matrix", "index", "flag", "key")


@st.composite
def programs(draw: Any, linear: bool = True) -> Program:
    """Programs.

    Args:
        linear: whether pullbacks are linear, or may clip the cotangent of a state leaf.
    """
    state = tuple(draw(st.lists(st.sampled_from(STATE_KINDS), min_size=1, max_size=4)))
    x = tuple(draw(st.lists(st.sampled_from(X_KINDS), min_size=1, max_size=3)))
    program = Program(state, x, (), (), ())
    bounded = [True] * len(program.kinds())
    for _ in range(draw(st.integers(1, 9))):
        program = _with_instruction(draw, program, bounded)
    new_state: list[int] = []
    for leaf, kind in enumerate(state):
        place = draw(st.sampled_from(_for_leaf(program, leaf, new_state)))
        if not bounded[place]:
            squash = "complex_squash" if kind == "complex" else f"{draw(st.sampled_from(['tanh', 'sin']))} of {kind}"
            program, place = _appended(program, bounded, Instruction(squash, (place,)), True)
        if kind == "vector" and not linear and place in program.moving() and draw(st.booleans()):
            program, place = _appended(program, bounded, Instruction("clipped_gradient", (place,)), True)
        new_state.append(place)
    program = program._replace(new_state=tuple(new_state))
    return program._replace(outputs=_draw_outputs(draw, program))


def _with_instruction(draw: Any, program: Program, bounded: list[bool]) -> Program:
    kinds = program.kinds()

    def readable(kind, grows):
        return [i for i, k in reversed([*enumerate(kinds)]) if k == kind and (bounded[i] or grows != "always")]

    having = {
        "always": {kind for kind, ok in zip(kinds, bounded, strict=True) if ok},
        "keeps": {*kinds},
        "never": {*kinds},
    }

    # The rarer kinds half of the time: few programs have them. Then the operation, then what it is of.
    names = [name for name, of in OPERATIONS.items() if having[of.grows].issuperset(of.reads)]
    rare = [name for name in names if name in RARE]
    names = rare if draw(st.booleans()) else names
    family = draw(st.sampled_from(list(dict.fromkeys(map(family_of, names)))))
    name = draw(st.sampled_from([name for name in names if family_of(name) == family]))
    of = OPERATIONS[name]
    reads = tuple(_draw_place(draw, readable(kind, of.grows)) for kind in of.reads)
    calls = ["plain"] + [call for call in CALLS if can_call(call, of)]
    call = draw(st.sampled_from(calls)) if draw(st.booleans()) else "plain"
    known = of.grows == "never" or (of.grows == "keeps" and all(bounded[i] for i in reads))
    return _appended(program, bounded, Instruction(name, reads, call), known)[0]


def _draw_place(draw: Any, places: list[int]) -> int:
    """Half of the time one of the newest, so that programs become deep."""
    return draw(st.sampled_from(places[: draw(st.sampled_from([2, len(places)]))]))


def _appended(program: Program, bounded: list[bool], instruction: Instruction, known: bool) -> tuple[Program, int]:
    bounded.append(known)
    return program._replace(instructions=(*program.instructions, instruction)), len(bounded) - 1


def _for_leaf(program: Program, leaf: int, others: list[int]) -> list[int]:
    """Registers that may be the new value of a state leaf; likely ones are there several times."""
    kind = program.state[leaf]
    places = [i for i, k in enumerate(program.kinds()) if k == kind]
    old = program.first("state") + leaf
    made = [i for i in reversed(places) if i >= program.first("instructions")]
    return [*made, *made, *made[:2] * 3, old, *places, *(i for i in others if i in places)]


def _draw_outputs(draw: Any, program: Program) -> tuple[int, ...]:
    """One or several, the first of them floating-point."""
    kinds = program.kinds()
    places = [i for i in reversed(range(program.first("state"), len(kinds))) if kinds[i] != "key"]
    exact = [i for i in places if kinds[i] in INEXACT] or [PARAMS.index("vector")]
    first = draw(st.sampled_from([i for i in program.new_state if i in exact] + exact))
    others = st.lists(st.sampled_from(places), max_size=2) if places else st.just([])
    drawn = first, *draw(others)
    # What nothing reads is read here as a rule, so that every instruction counts.
    read = {*drawn, *program.new_state, *(i for instruction in program.instructions for i in instruction.reads)}
    unread = [i for i in places if i >= program.first("instructions") and i not in read]
    return (*drawn, *unread) if draw(st.integers(0, 3)) else drawn


class Arguments(NamedTuple):
    params: Any
    state: Any
    xs: Any
    targets: Any


def arguments(program: Program, rng: np.random.Generator, T: int, B: int) -> Arguments:
    """Random arguments of a gradient function."""
    kinds = program.kinds()
    return Arguments(
        tuple(values(rng, kind) for kind in PARAMS),
        tuple(values(rng, kind, B) for kind in program.state),
        tuple(values(rng, kind, T, B) for kind in program.x),
        tuple(rng.normal(size=(T, B, *SHAPES[kinds[i]][0])) for i in program.outputs),
    )


def values(rng: np.random.Generator, kind: str, *axes: int) -> Any:
    """Random values of a kind."""
    shape, dtype = SHAPES[kind]
    size = (*axes, *shape)
    match dtype:
        case "key":
            return jax.random.wrap_key_data(jnp.asarray(rng.integers(2**32, size=(*size, 2)), "uint32"))
        case "bool":
            return jnp.asarray(rng.uniform(size=size) < 0.5)
        case "int32":
            return jnp.asarray(rng.integers(40, size=size), "int32")
        case "complex128":
            return jnp.asarray(rng.normal(size=size) + 1j * rng.normal(size=size)) / 2
    return jnp.asarray(rng.normal(size=size) / (2 if len(shape) == 2 else 1), dtype)
