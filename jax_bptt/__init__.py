"""Backpropagation through time, exact and truncated, for any step function in JAX.

    h_t, ŷ_t = step(θ, h_{t−1}, x_t)        a step of one sequence, written by the user
    L        = Σ_t ℓ(ŷ_t, y_t)

    gradient = bptt(step, loss)
    (loss, state), grads = gradient(params, state, xs, targets)

Letters for dimensions, everywhere: T time, B batch, H hidden, I inputs, O outputs; inside the library W steps in a
window, whose rows are its steps of all examples, `[W, B]`. Arrays have time first, then batch. Suffixes for time:
`h_t`, `h_tm1` (h_{t−1}).

The way of the data: `options` and `calls` read a call; `split` cuts the step by what it depends on, `problem` makes
flat leaves of everything; `windows` cuts time; `forward` computes the states; `reverse` holds the gradient of a window,
with the sums over its rows of `products`, and runs over windows for exact BPTT, as `laps` does for truncated; `bptt`,
`truncated` and `unroll` say what is computed. `reference` has the same by `jax.grad`; `training` makes updates of them,
`batching` what they are fed with; `diagnostics` measures how far credit travels.
"""

import importlib
from typing import Any

from jax_bptt import batching, cells, diagnostics, losses, reference, training
from jax_bptt.bptt import bptt, state_gradients
from jax_bptt.model import Cell
from jax_bptt.truncated import truncated_bptt
from jax_bptt.unroll import unroll

__all__ = [
    "Cell",
    "batching",
    "bptt",
    "cells",
    "diagnostics",
    "losses",
    "reference",
    "state_gradients",
    "training",
    "truncated_bptt",
    "unroll",
]


def __getattr__(name: str) -> Any:
    """`jax_bptt.plots`, imported where it is used, since matplotlib need not be installed."""
    if name == "plots":
        return importlib.import_module("jax_bptt.plots")
    raise AttributeError(f"module 'jax_bptt' has no attribute {name!r}")
