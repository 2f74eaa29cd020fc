"""The same gradients by `jax.grad`, as plain as can be: what everything else is compared with.

One batched step in one `lax.scan`, differentiated by JAX. Called like the functions of the same names at the top of
the package; `window` and `save` are ways of computing that it does not have.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.bptt import REDUCTIONS
from jax_bptt.checks import check_argnums, check_call, check_choice, check_loss
from jax_bptt.losses import masked
from jax_bptt.model import Loss, Model, step_of


def bptt(
    model: Model,
    loss: Loss,
    *,
    argnums: int | Sequence[int] = 0,
    reduction: str = "sum",
) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
    """The exact gradient, as `jax_bptt.bptt` computes it, by `jax.grad` through one `lax.scan`.

    Args:
        model, loss, argnums, reduction: as for `jax_bptt.bptt`.

    Returns:
        `gradient(params, state, xs, targets, mask=None) -> ((loss, state), grads)`, as `jax_bptt.bptt` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.bptt`.
    """
    chosen = check_argnums(argnums)
    check_loss(loss)
    check_choice("reduction", reduction, REDUCTIONS)
    step = step_of(model)
    batched_step = jax.vmap(step, in_axes=(None, 0, 0))
    batched_loss = jax.vmap(masked(loss))

    def gradient(params: Any, state: Any, xs: Any, targets: Any, mask: Any = None) -> tuple[tuple[jax.Array, Any], Any]:
        call = check_call(step, loss, chosen, params, state, xs, targets, mask)
        weights = jnp.ones((call.steps, call.batch), call.loss_dtype) if call.mask is None else call.mask

        def objective(params, state, xs):
            def body(state, inputs):
                x_t, target_t, weights_t = inputs
                state, output = batched_step(params, state, x_t)
                return state, batched_loss(output, target_t, weights_t)

            state, losses = jax.lax.scan(body, state, (xs, call.targets, weights))  # losses: [T, B]
            value = losses.sum()
            if reduction == "mean":
                weight = weights.sum()
                value = jnp.where(weight == 0, 0, value / jnp.where(weight == 0, 1, weight))
            return value, state

        return jax.value_and_grad(objective, argnums=argnums, has_aux=True)(call.params, call.state, call.xs)

    return gradient
