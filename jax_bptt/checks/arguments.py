"""What is checked when a gradient function is called, before anything is compiled: its arguments.

`check_call` checks them against each other and against what step and loss make of one example, and returns them as the
engine's `Call` of arrays; `over_sequences` makes a function of arguments of one of a call. Every message names the
argument, what was found and what was expected. All checks are of structures, shapes and dtypes, never of values, so
that they run once, while tracing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_bptt.checks.options import check_count, describe
from jax_bptt.engine.call import Call
from jax_bptt.engine.step import graph
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Loss, OverDrawnSequences, OverSequences, PyTree, Step

ARGUMENTS = ("params", "state", "xs")

Result = TypeVar("Result")


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


def over_sequences(
    step: Step, loss: Loss | None, *, argnums: Sequence[int] = (), burn_in: int = 0, context: int = 0
) -> Callable[[Callable[[Call], Result]], OverSequences[Result]]:
    """Decorates a function of a checked call: makes one of its arguments of it.

    Args:
        argnums: which of params, state and xs are to be differentiable.
        burn_in, context: the steps that are to be left after them.
    """

    def of_call(run: Callable[[Call], Result]) -> OverSequences[Result]:
        def called(
            params, state, xs=None, targets=None, mask=None, reset=None, reset_state=None, length=None
        ) -> Result:
            arguments = Arguments(params, state, xs, targets, mask, reset, reset_state, length)
            return run(check_call(step, loss, arguments, argnums=argnums, burn_in=burn_in, context=context))

        called.__name__ = run.__name__  # by which profilers and compiled programs know it
        return called

    return of_call


def over_drawn_sequences(
    step: Step, loss: Loss, *, argnums: Sequence[int], burn_in: int, context: int
) -> Callable[[Callable[[Call, jax.Array], Result]], OverDrawnSequences[Result]]:
    """As `over_sequences`, of a function that draws something, too, from the call's `key`."""

    def of_call(run: Callable[[Call, jax.Array], Result]) -> OverDrawnSequences[Result]:
        def called(
            params, state, xs=None, targets=None, mask=None, reset=None, reset_state=None, length=None, *, key=None
        ) -> Result:
            def drawn(call: Call) -> Result:
                return run(call, check_key(key))

            of_sequences = over_sequences(step, loss, argnums=argnums, burn_in=burn_in, context=context)(drawn)
            return of_sequences(params, state, xs, targets, mask, reset, reset_state, length)

        called.__name__ = run.__name__
        return called

    return of_call


def check_key(key: Any) -> jax.Array:
    """That it is one PRNG key."""
    try:
        jax.eval_shape(jax.random.split, key)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key: found {describe(key)}, expected one of jax.random.key") from error
    return key


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
    output = _check_step(step, params, state, xs)
    loss_dtype, reads = None, None
    if loss is not None:
        of_one = output, without_leading(targets, 2)
        loss_dtype = _check_loss_value(loss, *of_one)
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


def check_automatic(name: str, tree: Any) -> None:
    """That arrays are divided among devices along automatic axes of a mesh only: the passes say nothing of others."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        explicit = [axis for axis in jax.typeof(leaf).sharding.spec if axis is not None]
        if explicit:
            raise ValueError(
                f"{_path(name, path)}: found an array divided along explicit mesh axes {explicit}, expected automatic "
                "ones: those of a mesh with axis_types of jax.sharding.AxisType.Auto, or inside jax.sharding.auto_axes"
            )


def _check_axes(state: Any, xs: Any, targets: Any, length: Any) -> tuple[int, int]:
    """T and B."""
    for name, tree, axes in (("state", state, "[B, …]"), ("xs", xs, "[T, B, …]"), ("targets", targets, "[T, B, …]")):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves and name == "state":
            raise ValueError(f"{name}: found no arrays in it, expected arrays of {axes}")
        for path, leaf in leaves:
            if leaf.ndim < axes.count(","):
                raise ValueError(f"{_path(name, path)}: found shape {leaf.shape}, expected {axes}")
    over_time = [
        (_path(name, path), leaf)
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
                    f"{_path(name, path)}: found {leaf.shape[0]} time steps (shape {leaf.shape}), expected {steps} "
                    f"as in {first_name} (shape {first.shape})"
                )
    for name, tree, axis in (("state", state, 0), ("xs", xs, 1), ("targets", targets, 1)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.shape[axis] != batch:
                raise ValueError(
                    f"{_path(name, path)}: found a batch of {leaf.shape[axis]} (shape {leaf.shape}, batch on axis "
                    f"{axis}), expected {batch} as in {first_name} (shape {first.shape}, batch on axis 1)"
                )
    return steps, batch


def _check_length(length: Any) -> int:
    if length is None:
        raise ValueError("xs: found no arrays, in targets neither, and no length; expected one of them to tell T")
    return check_count("length", length)


def check_batched(state: Any) -> int:
    """That a state has arrays of `[B, …]`; returns B."""
    leaves = jax.tree.leaves(state)
    if not leaves or any(leaf.ndim == 0 or len(leaf) != len(leaves[0]) for leaf in leaves):
        raise ValueError(f"state: found {jax.tree.map(jnp.shape, state)}, expected arrays of [B, …]")
    return len(leaves[0])


def check_differentiable(name: str, tree: Any) -> None:
    """That the gradient with respect to an argument can be asked for."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"argnums: found {ARGUMENTS.index(name)}, which asks for the gradient with respect to {name}, but "
                f"{_path(name, path)} has dtype {leaf.dtype}; expected floating-point (or complex) arrays only"
            )


def _check_step(step: Step, params: Any, state: Any, xs: Any) -> Any:
    """The shapes of the output of one example."""
    one_state, one_x = without_leading(state, 1), without_leading(xs, 2)
    try:
        returned = jax.eval_shape(step, params, one_state, one_x)
    except Exception as error:
        if _takes_batch(step, params, state, xs):
            raise ValueError(_WRITTEN_FOR_BATCH) from error
        if not jax.tree.leaves(xs):
            error.add_note("xs has no arrays in it: the step gets it as it is.")
        error.add_note(f"This was raised by step(params, state, x) of one example, {_shapes(one_state, one_x)}.")
        raise
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"model: found a step that returns {describe(returned)}, expected a pair (state, output)")
    new_state, output = returned

    def subject(path: Any) -> str:
        return f"model: found a step that returns {'a state' if path is None else _path('state', path)} of"

    try:
        check_like(new_state, one_state, subject, "as it gets (of one example, without time and batch axes)")
    except ValueError as error:  # of a shape
        if _takes_batch(step, params, state, xs):
            raise ValueError(_WRITTEN_FOR_BATCH) from error
        raise
    return output


_WRITTEN_FOR_BATCH = (
    "model: found a step that was written for a batch: it takes states and inputs of [B, …] and not those of one "
    "example; expected step(params, state, x) of one example, without time and batch axes (the library adds them)"
)


def _takes_batch(step: Step, params: Any, state: Any, xs: Any) -> bool:
    """Whether the step returns a state like the one it gets, if it gets a whole batch of any size."""

    def takes(extra: int) -> bool:
        def batch_of(leaf):
            return jax.ShapeDtypeStruct((leaf.shape[0] + extra, *leaf.shape[1:]), leaf.dtype)

        batched = jax.tree.map(batch_of, state)
        try:
            new_state, _ = jax.eval_shape(step, params, batched, jax.tree.map(batch_of, without_leading(xs, 1)))
        except Exception:  # whatever the step raises, it does not take a batch
            return False
        return jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, batched)

    return takes(0) and takes(1)


def _check_loss_value(loss: Loss, output: Any, target: Any) -> Any:
    """The dtype of the loss."""
    try:
        value = jax.eval_shape(loss, output, target)
    except Exception as error:
        error.add_note(f"This was raised by loss(output, target) of one example, {_shapes(output, target)}.")
        raise
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        raise ValueError(
            f"loss: found a function that returns {describe(value)}, expected a scalar for one step of one example"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"loss: found a function that returns dtype {value.dtype}, expected a real floating-point one")
    return value.dtype


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
    check_like(reset_state, state, lambda path: _path("reset_state", path or ()) + ": found", "as in the state")
    return reset_state


def check_like(found: Any, expected: Any, subject: Callable[[Any], str], as_where: str) -> None:
    """The same structure, shapes and dtypes. `subject` begins the message, of the leaf at a path or, None, of all."""
    structures = jax.tree.structure(found), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        raise TypeError(f"{subject(None)} structure {structures[0]}, expected the structure {structures[1]} {as_where}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, leaf), like in pairs:
        if leaf.shape != like.shape:
            raise ValueError(f"{subject(path)} shape {leaf.shape}, expected {like.shape} {as_where}")
        if leaf.dtype != like.dtype:
            raise TypeError(f"{subject(path)} dtype {leaf.dtype}, expected {like.dtype} {as_where}")


def check_finite(states: Any) -> None:
    """States of `[T, B, …]`, where their values are known: outside of `jax.jit`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(states):
        if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        wrong = ~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"{_path('state', path)}: found NaN or infinity after step {int(wrong.argmax()) + 1} of {len(leaf)}, "
                "expected finite states"
            )


def arrays(name: str, tree: Any) -> Any:
    """The tree with JAX arrays for its leaves."""

    def array(path, leaf):
        try:
            if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
                return jnp.asarray(leaf)
        except TypeError:  # a NumPy array of objects
            pass
        found = f"no more than {leaf}" if isinstance(leaf, jax.ShapeDtypeStruct) else describe(leaf)
        raise TypeError(f"{_path(name, path)}: found {found}, expected an array")

    return jax.tree_util.tree_map_with_path(array, tree)


def _path(name: str, path: Any) -> str:
    return name + jax.tree_util.keystr(path)


def _shapes(first: Any, second: Any) -> str:
    text = [jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (first, second)]
    return f"called with {text[0]} and {text[1]}"
