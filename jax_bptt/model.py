"""The vocabulary: what a model, a loss and a gradient function are, and the options that they share."""

import inspect
from collections.abc import Callable
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import jax

PyTree = Any
"""Arrays in any nesting of containers that JAX knows."""

#: `step(params, state, x) -> (state, output)` of one example: no time axis, no batch axis, any pytrees.
Step = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]

#: `loss(output, target) -> scalar` of one step of one example.
Loss = Callable[[PyTree, PyTree], jax.Array]

Reduction = Literal["sum", "mean"]
"""Of the losses: Σ mask·ℓ over all steps and examples, or that over the sum of the weights."""

Save = Literal["dots", "states", "boundaries"]
"""What the forward pass keeps of every step."""

Losses = Literal["newest", "all", "last"]
"""Which of its losses a window of truncation has."""


class Cell(NamedTuple):
    """A recurrent model of pure functions.

    Every function that takes a `model` takes either a `Cell` or a bare step; nothing is faster for being a `Cell`.
    """

    init: Callable[[jax.Array], PyTree]
    """`init(key) -> params`."""
    initial_state: Callable[[int], PyTree]
    """`initial_state(batch_size) -> state`, with a leading batch axis."""
    step: Step
    """`step(params, state, x) -> (state, output)` of one example."""


Model = Cell | Step

Result = TypeVar("Result", covariant=True)


class OverSequences(Protocol[Result]):
    """A function of a batch of sequences: what `bptt` and the others that take a model and a loss return."""

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        xs: PyTree = None,
        targets: PyTree = None,
        mask: jax.typing.ArrayLike | None = None,
        reset: jax.typing.ArrayLike | None = None,
        reset_state: PyTree = None,
        length: int | None = None,
    ) -> Result:
        """Run it.

        Args:
            params: the model's.
            state: the state to begin with, `[B, …]`.
            xs, targets: inputs and targets, `[T, B, …]`; None where the step, or the loss, has none.
            mask: weights of the losses, `[T]` or `[T, B]`.
            reset: where the state is put back before a step, booleans of `[T]` or `[T, B]`.
            reset_state: to what it is put back, `[B, …]`; zeros where None.
            length: T, where neither xs nor targets tell.
        """
        ...


GradientFunction = OverSequences[tuple[tuple[jax.Array, PyTree], PyTree]]
"""`(loss, state), grads = gradient(params, state, xs, targets, mask, reset, reset_state, length)`."""


class OverDrawnSequences(Protocol[Result]):
    """A function of a batch of sequences that draws something: what `artbp` and `randomized_telescope` return."""

    def __call__(
        self,
        params: PyTree,
        state: PyTree,
        xs: PyTree = None,
        targets: PyTree = None,
        mask: jax.typing.ArrayLike | None = None,
        reset: jax.typing.ArrayLike | None = None,
        reset_state: PyTree = None,
        length: int | None = None,
        *,
        key: jax.Array,
    ) -> Result:
        """Run it, on the arguments of `OverSequences` and a key of `jax.random`, from which alone it draws."""
        ...


DrawnGradient = OverDrawnSequences[tuple[tuple[jax.Array, PyTree], PyTree]]
"""`(loss, state), grads = gradient(params, state, xs, targets, …, key=key)`."""


Carried = TypeVar("Carried")


class ForwardMode(NamedTuple, Generic[Carried]):
    """A gradient that is carried forwards in time, as a pair like those of optax."""

    init: Callable[..., Carried]
    """`init(params, state, xs=None) -> carry`; of `uoro` with `key`."""
    gradient: Callable[..., tuple[tuple[jax.Array, Carried], PyTree]]
    """`(loss, carry), grads = gradient(params, carry, xs, targets, mask, reset, reset_state, length)`."""


def step_of(model: Model) -> Step:
    """The step of a model.

    Raises:
        TypeError: if `model` is neither a `Cell` nor callable, or is a module of Flax.
    """
    step = model.step if isinstance(model, Cell) else model
    of_flax = [kind.__module__ for kind in inspect.getmro(type(model)) if kind.__module__.startswith("flax.")]
    if of_flax:
        how = "graph, params = nnx.split(module) and lambda params, state, x: nnx.merge(graph, params)(state, x)"
        how = how if any("nnx" in name for name in of_flax) else "module.apply, whose params are those of module.init"
        raise TypeError(f"model: found {type(model).__name__}, a module of Flax, expected a function; use {how}")
    if not callable(step):
        raise TypeError(
            f"model: found {type(model).__name__}, expected a function step(params, state, x) -> (state, output) "
            "of one example, or a jax_bptt.Cell"
        )
    return step
