"""What a model is: the step of one example, alone or together with its initial params and state as a `Cell`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

#: `step(params, state, x) -> (state, output)` of one example: no time axis, no batch axis, any pytrees.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]

#: `loss(output, target) -> scalar` of one step of one example.
Loss = Callable[[Any, Any], jax.Array]


class Cell(NamedTuple):
    """A recurrent model of pure functions.

    Every function that takes a `model` takes either a `Cell` or a bare step; nothing is faster for being a `Cell`.
    """

    init: Callable[[jax.Array], Any]
    """`init(key) -> params`."""
    initial_state: Callable[[int], Any]
    """`initial_state(batch_size) -> state`, with a leading batch axis."""
    step: Step
    """`step(params, state, x) -> (state, output)` of one example."""


Model = Cell | Step


def step_of(model: Model) -> Step:
    """The step of a model.

    Raises:
        TypeError: if `model` is neither a `Cell` nor callable.
    """
    step = model.step if isinstance(model, Cell) else model
    if not callable(step):
        raise TypeError(
            f"model: found {type(model).__name__}, expected a function step(params, state, x) -> (state, output) "
            "of one example, or a jax_bptt.Cell"
        )
    return step
