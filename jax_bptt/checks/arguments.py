"""What is checked when a gradient function is called, before anything is compiled: its arguments, beside each other.

`check_call` checks them against each other and against what step and loss make of one example, and returns them as the
engine's `Call` of arrays. Every message names the argument, what was found and what was expected. All checks are of
structures, shapes and dtypes, never of values, so that they run once, while tracing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.checks.models import check_loss, check_step
from jax_bptt.checks.options import check_count, describe
from jax_bptt.checks.trees import ARGUMENTS, arrays, check_automatic, check_differentiable, check_like, path_of
from jax_bptt.engine.call import Call
from jax_bptt.engine.step import graph
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Loss, PyTree, Step


class Arguments(NamedTuple):
    """Those of a function of sequences, as `OverSequences` tells them."""

    params: PyTree
    state: PyTree
    xs: PyTree
    targets: PyTree = None
    mask: Any = None
    reset: Any = None
    reset_state: PyTree = None
    length: Any = None


def check_call(
    step: Step,
    loss: Loss | None,
    arguments: Arguments,
    *,
    argnums: Sequence[int] = (),
    burn_in: int = 0,
    context: int = 0,
) -> Call:
    """All arguments of a call, against each other and against what step and loss (if there is one) make of them.

    Raises:
        TypeError: for a wrong structure or dtype.
        ValueError: for a wrong shape.
    """
    named = ("params", "state", "xs", "targets")
    trees = {name: arrays(name, getattr(arguments, name)) for name in named}
    for name, tree in trees.items():
        check_automatic(name, tree)
    params, state, xs, targets = trees.values()
    steps, batch = _check_axes(state, xs, targets, arguments.length)
    for n in argnums:
        check_differentiable(ARGUMENTS[n], trees[ARGUMENTS[n]])
    if burn_in >= steps:
        raise ValueError(f"burn_in: found {burn_in}, expected less than the {steps} time steps")
    if burn_in + context >= steps:
        raise ValueError(
            f"context: found {context}, expected less than the {steps - burn_in} time steps"
            + " after the burn-in" * bool(burn_in)
        )
    output = check_step(step, params, state, xs)
    loss_dtype, reads = None, None
    if loss is not None:
        of_one = output, without_leading(targets, 2)
        loss_dtype = check_loss(loss, *of_one)
        reads = tuple(graph.reads(loss, *of_one)[: len(jax.tree.leaves(output))])
    mask = _check_per_step(
        "mask", arguments.mask, steps, batch, "booleans or real numbers", jnp.bool_, jnp.integer, jnp.floating
    )
    reset = _check_per_step("reset", arguments.reset, steps, batch, "booleans", jnp.bool_)
    if mask is not None:
        mask = mask.astype(loss_dtype)
    reset_state = _check_reset_state(reset, arguments.reset_state, state)
    sizes = steps, (batch,)
    return Call(step, loss, params, state, xs, targets, mask, reset, reset_state, *sizes, loss_dtype, reads)


def _check_axes(state: Any, xs: Any, targets: Any, length: Any) -> tuple[int, int]:
    """T and B."""
    for name, tree, axes in (("state", state, "[B, …]"), ("xs", xs, "[T, B, …]"), ("targets", targets, "[T, B, …]")):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves and name == "state":
            raise ValueError(f"{name}: found no arrays in it, expected arrays of {axes}")
        for path, leaf in leaves:
            if leaf.ndim < axes.count(","):
                raise ValueError(f"{path_of(name, path)}: found shape {leaf.shape}, expected {axes}")
    over_time = [
        (path_of(name, path), leaf)
        for name, tree in (("xs", xs), ("targets", targets))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    if not over_time:
        return _check_length(length), jax.tree.leaves(state)[0].shape[0]
    first_name, first = over_time[0]
    steps, batch = first.shape[:2]
    if steps == 0:
        raise ValueError(f"{first_name}: found shape {first.shape} with T = 0 time steps, expected at least one")
    if batch == 0:
        raise ValueError(f"{first_name}: found shape {first.shape} with B = 0 examples, expected at least one")
    if length is not None and _check_length(length) != steps:
        raise ValueError(f"length: found {length}, expected {steps} as in {first_name} (shape {first.shape}), or None")
    for name, tree in (("xs", xs), ("targets", targets)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.shape[0] != steps:
                raise ValueError(
                    f"{path_of(name, path)}: found {leaf.shape[0]} time steps (shape {leaf.shape}), expected {steps} "
                    f"as in {first_name} (shape {first.shape})"
                )
    for name, tree, axis in (("state", state, 0), ("xs", xs, 1), ("targets", targets, 1)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.shape[axis] != batch:
                raise ValueError(
                    f"{path_of(name, path)}: found a batch of {leaf.shape[axis]} (shape {leaf.shape}, batch on axis "
                    f"{axis}), expected {batch} as in {first_name} (shape {first.shape}, batch on axis 1)"
                )
    return steps, batch


def _check_length(length: Any) -> int:
    if length is None:
        raise ValueError("xs: found no arrays, in targets neither, and no length; expected one of them to tell T")
    return check_count("length", length)


def _check_per_step(name: str, found: Any, steps: int, batch: int, expected: str, *kinds: Any) -> jax.Array | None:
    """An array of `[T]` or `[T, B]`, as `[T, B]`."""
    if found is None:
        return None
    found = arrays(name, found)
    if not isinstance(found, jax.Array):
        raise TypeError(f"{name}: found {describe(found)}, expected an array of [T] or [T, B]")
    if not any(jnp.issubdtype(found.dtype, kind) for kind in kinds):
        raise TypeError(f"{name}: found dtype {found.dtype}, expected {expected}")
    if found.shape not in ((steps,), (steps, batch)):
        raise ValueError(
            f"{name}: found shape {found.shape}, expected [T] = ({steps},) or [T, B] = ({steps}, {batch}) as in xs"
        )
    return found if found.ndim == 2 else jnp.broadcast_to(found[:, None], (steps, batch))


def _check_reset_state(reset: Any, reset_state: Any, state: Any) -> Any:
    """A state to reset to: like the state."""
    if reset_state is None:
        return None
    if reset is None:
        raise ValueError("reset_state: found one, but no reset; expected booleans that say where to reset to it")
    reset_state = arrays("reset_state", reset_state)
    check_like(reset_state, state, lambda path: path_of("reset_state", path or ()) + ": found", "as in the state")
    return reset_state
