"""The recipes: a cell of another library as `step(params, state, x) -> (state, output)`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
from flax import nnx


def flax_nnx(cell: Any) -> tuple[Callable, Any]:
    """Step and params of a Flax NNX cell. (A Flax Linen cell's step is its `apply`.)"""
    graph, params = nnx.split(cell)
    return lambda params, state, x: nnx.merge(graph, params)(state, x), params


def equinox(cell: Any) -> tuple[Callable, Any]:
    """Step and params of an Equinox cell; its output is its hidden state."""
    params, static = eqx.partition(cell, eqx.is_array)

    def step(params, state, x):
        state = eqx.combine(params, static)(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    return step, params


def haiku(make: Callable[[], Any]) -> tuple[Callable, Callable]:
    """Step of the Haiku core that `make()` returns, and `init(key, x, state) -> params`."""
    core = hk.without_apply_rng(hk.transform(lambda x, state: make()(x, state)))
    return lambda params, state, x: core.apply(params, x, state)[::-1], core.init
