"""What is checked of a step and a loss, traced for one example: what they return.

What they raise is theirs, with a note that says what they were called with.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.checks.options import describe
from jax_bptt.checks.trees import check_like, path_of
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Loss, Step


def check_step(step: Step, params: Any, state: Any, xs: Any) -> Any:
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
        return f"model: found a step that returns {'a state' if path is None else path_of('state', path)} of"

    try:
        check_like(new_state, one_state, subject, "as it gets (of one example, without time and batch axes)")
    except ValueError as error:  # of a shape
        if _takes_batch(step, params, state, xs):
            raise ValueError(_WRITTEN_FOR_BATCH) from error
        raise
    return output


def check_loss(loss: Loss, output: Any, target: Any) -> Any:
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


_WRITTEN_FOR_BATCH = (
    "model: found a step that was written for a batch: it takes states and inputs of [B, …] and not those of one "
    "example; expected step(params, state, x) of one example, without time and batch axes (the library adds them); or "
    "arrays that lack their batch axis: expected a state of [B, …] and xs of [T, B, …]"
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


def _shapes(first: Any, second: Any) -> str:
    text = [jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (first, second)]
    return f"called with {text[0]} and {text[1]}"
