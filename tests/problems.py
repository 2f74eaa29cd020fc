"""Models with their oracle, a loss, and random arguments: what the gradient functions are tested on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracles

import jax_bptt as jb

I, H, O = 3, 4, 2


class Problem(NamedTuple):
    model: Any
    oracle: oracles.Model
    params: Any
    state: Callable[[np.random.Generator, int], Any]
    xs: Callable[[np.random.Generator, int, int], Any]
    loss: Any = jb.losses.squared_error
    oracle_loss: Any = oracles.squared_error
    targets: Callable[[np.random.Generator, int, int], Any] = lambda rng, T, B: rng.normal(size=(T, B, O))


class Arguments(NamedTuple):
    params: Any
    state: Any
    xs: Any
    targets: Any


def of_cell(cell: jb.Cell, oracle: oracles.Model, **more: Any) -> Problem:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: np.asarray(p) + 0.1 * rng.normal(size=p.shape), cell.init(jax.random.key(0)))
    state = cell.initial_state(1)
    return Problem(
        cell,
        oracle,
        params,
        lambda rng, B: jax.tree.map(lambda s: rng.normal(size=(B, *s.shape[1:])), state),
        lambda rng, T, B: rng.normal(size=(T, B, I)),
        **more,
    )


def nested_step(params, state, x):
    """`oracles.nested`, of one example; the output reads the state before the step, too."""
    h_tm1, (s_tm1,) = state["h"], state["more"]
    h = jnp.sin(h_tm1 @ params["in"]["A"] + x["u"] @ params["in"]["B"] + s_tm1)
    s = params["decay"] * s_tm1 + h_tm1 * x["more"][0]
    return {"h": h, "more": (s,)}, {"y": h + s_tm1, "z": [s * params["out"]]}


def nested_loss(output, target):
    return sum(jax.tree.leaves(jax.tree.map(jb.losses.squared_error, output, target)))


_rng = np.random.default_rng(1)

PROBLEMS = {
    "elman": of_cell(jb.cells.elman(I, H, O), oracles.elman()),
    "elman relu tanh": of_cell(
        jb.cells.elman(I, H, O, f=jax.nn.relu, g=jnp.tanh, bias=True), oracles.elman("relu", "tanh")
    ),
    "elman sigmoid": of_cell(
        jb.cells.elman(I, H, O, f=jax.nn.sigmoid, g=jax.nn.sigmoid, output_bias=True),
        oracles.elman("sigmoid", "sigmoid"),
    ),
    "gru": of_cell(jb.cells.gru(I, H, O), oracles.gru()),
    "lstm": of_cell(
        jb.cells.lstm(I, H, O, output_bias=True),
        oracles.lstm(),
        loss=jb.losses.softmax_cross_entropy,
        oracle_loss=oracles.softmax_cross_entropy,
        targets=lambda rng, T, B: rng.integers(O, size=(T, B)),
    ),
    "stack": of_cell(
        jb.cells.stack([jb.cells.gru(I, H, None), jb.cells.lstm(H, H, O)]),
        oracles.stack([oracles.gru(), oracles.lstm()]),
    ),
    "stack of elman": of_cell(
        jb.cells.stack([jb.cells.elman(I, H, None), jb.cells.elman(H, H, O)]),
        oracles.stack([oracles.elman(), oracles.elman()]),
    ),
    "nested": Problem(
        nested_step,
        oracles.nested(),
        {
            "in": {"A": _rng.normal(size=(H, H)) / 2, "B": _rng.normal(size=(I, H))},
            "decay": np.asarray(0.7),
            "out": _rng.normal(size=H),
        },
        lambda rng, B: {"h": rng.normal(size=(B, H)), "more": (rng.normal(size=(B, H)),)},
        lambda rng, T, B: {"u": rng.normal(size=(T, B, I)), "more": [rng.normal(size=(T, B, H))]},
        nested_loss,
        oracles.squared_error,
        lambda rng, T, B: {"y": rng.normal(size=(T, B, H)), "z": [rng.normal(size=(T, B, H))]},
    ),
}


def arguments(problem: Problem, seed: int, T: int, B: int, dtype: str = "float64") -> Arguments:
    """Random arguments, rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    args = Arguments(problem.params, problem.state(rng, B), problem.xs(rng, T, B), problem.targets(rng, T, B))
    return jax.tree.map(lambda a: a if a.dtype.kind == "i" else a.astype(dtype), args)


def oracle(problem: Problem, args: Arguments, mask: Any = None, reduction: str = "sum") -> Any:
    """What `oracles.bptt` makes of the arguments, in float64."""
    wide = jax.tree.map(lambda a: a if a.dtype.kind == "i" else a.astype("float64"), args)
    T, B = jax.tree.leaves(args.xs)[0].shape[:2]
    weights = np.ones((T, B)) if mask is None else np.broadcast_to(mask.reshape(T, -1), (T, B)).astype("float64")
    return oracles.bptt(problem.oracle, problem.oracle_loss, *wide, weights, reduction)


def difference(got: Any, want: Any) -> float:
    """The largest relative difference of any leaf: max |got − want| / max |want|."""
    worst = 0.0
    for a, b in _pairs(got, want):
        largest = np.abs(a - b).max(initial=0)
        worst = max(worst, largest and largest / max(np.abs(b).max(initial=0), 1e-300))
    return float(worst)


def check_close(got: Any, want: Any, dtype: str) -> None:
    """Got is what was wanted, ((loss, state), grads), up to the rounding of its precision; notes how close it is.

    In double precision leaf by leaf, in single precision the loss, the state and the gradient each as a whole: a leaf
    of the gradient, that of an output bias above all, can be the small rest of large terms, and has then lost digits in
    single precision however it was summed, by `jax.grad` as well.
    """
    if dtype == "float64":
        largest, tolerance = difference(got, want), 1e-12
    else:
        (loss, state), grads = want
        parts = zip((got[0][0], got[0][1], got[1]), (loss, state, grads), strict=True)
        largest, tolerance = max(_difference_as_a_whole(a, b) for a, b in parts), 5e-6
    hypothesis.event(f"largest relative difference, {dtype}", payload=f"below {_decade(largest)}")
    assert largest <= tolerance


def _difference_as_a_whole(got: Any, want: Any) -> float:
    pairs = _pairs(got, want)
    largest = max(np.abs(a - b).max() for a, b in pairs)
    return float(largest and largest / max(1e-300, *(np.abs(b).max() for _, b in pairs)))


def _pairs(got: Any, want: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(jnp.result_type(b), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert np.isfinite(b).all()
        pairs.append((a, b))
    return pairs


def _decade(value: float) -> str:
    """The least of 1, 2 and 5 times a power of ten that is larger."""
    steps = (step * 10.0**power for power in range(-17, 1) for step in (1, 2, 5))
    return f"{next((s for s in steps if value < s), 1.0):.0e}"
