"""Backpropagation through time, exact and truncated, for any step function in JAX.

    h_t, ŷ_t = step(θ, h_{t−1}, x_t)        a step of one sequence, written by the user
    L        = Σ_t ℓ(ŷ_t, y_t)

    gradient = bptt(step, loss)
    (loss, state), grads = gradient(params, state, xs, targets)

Letters for dimensions, everywhere: T time, B batch, H hidden, I inputs, O outputs; inside the library W steps in a
window, whose rows are its steps of all examples, `[W, B]`. Arrays have time first, then batch. Suffixes for time:
`h_t`, `h_tm1` (h_{t−1}).

Where to begin: `exact.py` says what is computed, `engine/window_gradient.py` is the idea. The rooms:

    exact, truncated   the gradient functions: `bptt`, `state_gradients`; `truncated_bptt`
    randomized         `artbp`, `randomized_telescope`: truncation without bias
    forward_mode/      `rtrl`, the exact gradient forwards in time; `snap1`, `eprop`, `uoro`, which approximate it
    parallel           `data_parallel`: any of them over a batch divided among devices
    recurrence         `scan`, which takes the place of `lax.scan`; `unroll`, the same of a step of one example
    reference/         the same gradients by `jax.grad`
    model              the vocabulary: step, loss, cell, gradient function, options
    cells, losses      ready-made models and losses
    tuning             `tune`: the fastest way of computing a gradient, measured on the user's own arguments
    training/          updates made of gradients; batching, what they are fed with; checkpoint, what is saved of them
    diagnostics/       how far credit travels, what truncation makes of it, what runs where
    plots              pictures of it
    checks/            what is refused, before anything is traced
    engine/            private: how it is computed; its docstring is a map of its own
    command/           the command-line program

What needs more than JAX is imported when it is first used: `losses` and `training`, which need optax, and `checkpoint`
and `plots`, which need what only the extras of their names install.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from jax_bptt import batching, cells, diagnostics, reference
from jax_bptt.exact import bptt, state_gradients
from jax_bptt.forward_mode.carried import eprop, rtrl, snap1
from jax_bptt.forward_mode.rank_one import uoro
from jax_bptt.model import Cell
from jax_bptt.parallel import data_parallel
from jax_bptt.randomized import artbp, randomized_telescope
from jax_bptt.recurrence import scan, unroll
from jax_bptt.truncated import truncated_bptt
from jax_bptt.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "artbp",
    "batching",
    "bptt",
    "cells",
    "data_parallel",
    "diagnostics",
    "eprop",
    "losses",
    "randomized_telescope",
    "reference",
    "rtrl",
    "scan",
    "snap1",
    "state_gradients",
    "training",
    "truncated_bptt",
    "tune",
    "unroll",
    "uoro",
]

if TYPE_CHECKING:
    from jax_bptt import checkpoint as checkpoint
    from jax_bptt import losses, training
    from jax_bptt import plots as plots
else:

    def __getattr__(name: str) -> ModuleType:
        if name not in ("checkpoint", "losses", "plots", "training"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if name in ("losses", "training"):
                raise
            needs = f"jax_bptt.{name} needs {error.name}: pip install 'jax_bptt[{name}]'"
            raise ModuleNotFoundError(needs, name=error.name) from error
