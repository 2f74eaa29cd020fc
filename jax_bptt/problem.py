"""From the arguments of a call to what forward and reverse passes work on, and back.

The step's parts and weights, flat leaves, the steps of burn-in done and left out; and from cotangents of flat leaves
the gradients in the structures that the user knows. Shared by every function that runs a reverse pass of ours.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.calls import Call
from jax_bptt.forward import Recurrence, forward, recurrence
from jax_bptt.model import Loss, Step
from jax_bptt.reverse import Objective, Wanted, accumulator, pull_loss
from jax_bptt.split import Leaves, combine, differentiable, split
from jax_bptt.windows import Windows, default_size, example


class Problem(NamedTuple):
    """What the passes work on. Steps are those after the burn-in."""

    recurrence: Recurrence
    wanted: Wanted
    state: Leaves  # [B, …]
    xs: Leaves  # [T, B, …]
    targets: Any  # [T, B, …]
    mask: jax.Array | None  # [T, B]
    steps: int
    batch: int
    burn_in: int
    marked: Leaves | None
    """The state after the marked number of steps, if the burn-in has so many."""
    constants: int
    """How many leaves at the end of the state are constants: those of the state to reset to."""
    pull_weights: Callable[[Leaves], Any]
    """From cotangents of the wanted weights to the gradient of the params."""


def problem(step: Step, call: Call, argnums: Sequence[int], burn_in: int, mark: int | None = None) -> Problem:
    """Split the step, prepare the weights and do the burn-in.

    Args:
        mark: after how many steps of the burn-in the state is to be told.
    """
    state, xs = call.state, call.xs
    if call.reset is not None:
        step = with_reset(step, call.reset_state is not None)
        state, xs = (state, call.reset_state), (xs, call.reset)
    parts = split(step, call.params, example(state, 1), example(xs, 2))
    params, params_structure = jax.tree.flatten(call.params)

    def prepare(params):
        weights = parts.prepare(params)
        wanted = [0 in argnums and from_params for from_params in parts.from_params]
        return [w if want else None for w, want in zip(differentiable(weights), wanted, strict=True)], weights

    trained, pull, weights = jax.vjp(prepare, params, has_aux=True)

    def pull_weights(weights_bar: Leaves) -> Any:
        cast = [bar if w is None else bar.astype(w.dtype) for bar, w in zip(weights_bar, trained, strict=True)]
        return jax.tree.unflatten(params_structure, pull(cast)[0])

    state, xs = jax.tree.leaves(state), jax.tree.leaves(xs)
    of_step = recurrence(parts, weights, state, xs)
    marked = None
    if burn_in:
        windows = Windows(burn_in, default_size(burn_in, call.batch, "states"))
        mark = mark if mark is not None and mark <= burn_in else None
        state, at_mark, *_ = forward(of_step, state, [x[:burn_in] for x in xs], windows, "boundaries", mark=mark)
        marked = None if mark is None else at_mark
        xs = [x[burn_in:] for x in xs]
    return Problem(
        of_step,
        Wanted(trained, differentiable(xs) if 2 in argnums else [None] * len(xs)),
        state,
        xs,
        jax.tree.map(lambda a: a[burn_in:], call.targets),
        call.mask if call.mask is None else call.mask[burn_in:],
        call.steps - burn_in,
        call.batch,
        burn_in,
        marked,
        len(jax.tree.leaves(call.reset_state)),
        pull_weights,
    )


def with_reset(step: Step, given: bool) -> Step:
    """The step of `(state, initial)` and `(x, reset)`: where reset, the state is put back to the initial one first.

    Args:
        given: whether there is an initial state; else zeros are put in place of numbers, and PRNG keys go on.
    """

    def step_after_reset(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        (state, initial), (x, reset) = state, x
        if given:
            state = jax.tree.map(lambda i, s: jnp.where(reset, i, s), initial, state)
        else:
            state = jax.tree.map(lambda s: jnp.where(reset, jnp.zeros_like(s), s) if is_number(s) else s, state)
        state, output = step(params, state, x)
        return (state, initial), output

    return step_after_reset


def is_number(leaf: Any) -> bool:
    """Whether a leaf is other than a PRNG key."""
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def objective(problem: Problem, loss: Loss, loss_dtype: Any, reduction: str, counts: np.ndarray) -> Objective:
    """The losses as they count.

    Args:
        counts: how often the loss of each step counts, `[T]`.
    """
    mask = problem.mask
    if not counts.all():
        mask = jnp.ones((problem.steps, problem.batch), loss_dtype) if mask is None else mask
        mask = jnp.where(jnp.asarray(counts > 0)[:, None], mask, 0)
    dtype = accumulator(loss_dtype)
    if reduction == "sum":
        scale = jnp.ones((), dtype)
    elif mask is None:
        scale = jnp.asarray(1 / (counts.sum() * problem.batch), dtype)
    else:
        weight = (mask * jnp.asarray(counts, dtype)[:, None]).sum(dtype=dtype)
        scale = jnp.where(weight == 0, 0, 1 / jnp.where(weight == 0, 1, weight))
    return Objective(pull_loss(loss, scale), problem.targets, mask, dtype)


def state_of(call: Call, leaves: Leaves) -> Any:
    """Leaves of the state in the user's structure, without that to reset to."""
    structure = jax.tree.structure(call.state)
    return jax.tree.unflatten(structure, leaves[: structure.num_leaves])


def gradients(
    problem: Problem, call: Call, argnums: int | Sequence[int], weights_bar: Leaves, start: Leaves, xs_bar: Leaves
) -> Any:
    """Cotangents of flat leaves as what `argnums` asks for; those of the burn-in are zero."""

    def of_state() -> Any:
        leaves = [d if d is None or not problem.burn_in else jnp.zeros_like(d) for d in start]
        return like(call.state, leaves[: jax.tree.structure(call.state).num_leaves])

    def of_xs() -> Any:
        before = [(problem.burn_in, 0)]
        leaves = [
            bar if bar is None or not problem.burn_in else jnp.pad(bar, before + [(0, 0)] * (bar.ndim - 1))
            for bar in xs_bar
        ]
        return like(call.xs, leaves[: jax.tree.structure(call.xs).num_leaves])

    by_argument = (lambda: problem.pull_weights(weights_bar), of_state, of_xs)
    if isinstance(argnums, int):
        return by_argument[argnums]()
    return tuple(by_argument[n]() for n in argnums)


def zero_delta(state: Leaves) -> Leaves:
    """δ where nothing comes from later."""
    return jax.tree.map(jnp.zeros_like, differentiable(state))


def like(tree: Any, leaves: Leaves) -> Any:
    """`leaves` in the structure of `tree`, with zeros of float0 for those that have no derivative."""
    old, structure = jax.tree.flatten(tree)
    zeros = [np.zeros(leaf.shape, jax.dtypes.float0) for leaf in old]
    return jax.tree.unflatten(structure, combine(leaves, zeros))
