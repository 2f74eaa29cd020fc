"""The same gradients by `jax.grad`, as plain as can be: what everything else is compared with.

A batched step in one `lax.scan`, differentiated by JAX; for truncation one such scan per window, from a state that
`stop_gradient` makes a constant. Called like the functions of the same names at the top of the package; `window`,
`save` and `parallel` are ways of computing that these do not have.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.calls import Call, check_call
from jax_bptt.losses import masked
from jax_bptt.model import Loss, Model, step_of
from jax_bptt.options import check_argnums, check_options, check_truncation


def bptt(
    model: Model,
    loss: Loss,
    *,
    argnums: int | Sequence[int] = 0,
    reduction: str = "sum",
    burn_in: int = 0,
) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
    """The exact gradient, as `jax_bptt.bptt` computes it, by `jax.grad` through one `lax.scan`.

    Args:
        model, loss, argnums, reduction, burn_in: as for `jax_bptt.bptt`.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> ((loss, state), grads)`, as
        `jax_bptt.bptt` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.bptt`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    check_options(loss, reduction, burn_in)

    def gradient(
        params: Any, state: Any, xs: Any, targets: Any, mask: Any = None, reset: Any = None, reset_state: Any = None
    ) -> tuple[tuple[jax.Array, Any], Any]:
        call = check_call(step, loss, chosen, params, state, xs, targets, mask, reset, reset_state, burn_in)

        def objective(params, state, xs):
            run = _runner(step, loss, call, params, xs)
            if burn_in:
                state = jax.tree.map(jax.lax.stop_gradient, run(state, 0, burn_in)[0])
            state, losses = run(state, burn_in, call.steps)
            return _reduce(losses.sum(), _weights(call)[burn_in:].sum(), reduction), state

        return jax.value_and_grad(objective, argnums=argnums, has_aux=True)(call.params, call.state, call.xs)

    return gradient


def truncated_bptt(
    model: Model,
    loss: Loss,
    k1: int,
    k2: int,
    *,
    losses: str = "newest",
    argnums: int | Sequence[int] = 0,
    reduction: str = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
    """The truncated gradient, as `jax_bptt.truncated_bptt` computes it, by `jax.grad` and `stop_gradient`.

    Every window is run again, from the state at its start as a constant.

    Args:
        model, loss, k1, k2, losses, argnums, reduction, burn_in, context: as for `jax_bptt.truncated_bptt`.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> ((loss, state), grads)`, as
        `jax_bptt.truncated_bptt` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.truncated_bptt`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    check_options(loss, reduction, burn_in)
    k1, k2, context = check_truncation(k1, k2, losses, context)

    def gradient(
        params: Any, state: Any, xs: Any, targets: Any, mask: Any = None, reset: Any = None, reset_state: Any = None
    ) -> tuple[tuple[jax.Array, Any], Any]:
        call = check_call(step, loss, chosen, params, state, xs, targets, mask, reset, reset_state, burn_in, context)
        first = burn_in + context  # the first step with a loss

        def objective(params, state, xs):
            run = _runner(step, loss, call, params, xs)
            if burn_in:
                state = jax.tree.map(jax.lax.stop_gradient, run(state, 0, burn_in)[0])
            states = {burn_in: state}  # those at which windows start, by the number of steps before them
            value, weight = jnp.zeros((), call.loss_dtype), jnp.zeros((), call.loss_dtype)
            at = burn_in
            for end in range(first + k1, call.steps + k1, k1):
                start = max(burn_in, end - k2)
                if start >= call.steps:
                    break  # the last window starts in what would be padding
                if start not in states:
                    constant, _ = run(states[at], at, start)
                    states[start] = jax.tree.map(jax.lax.stop_gradient, constant)
                    at = start
                _, of_window = run(states[start], start, min(end, call.steps))
                new = {"newest": end - k1, "all": max(first, start), "last": end - 1}[losses]
                value += of_window[max(0, new - start) :].sum()
                weight += _weights(call)[new:end].sum()
            last = call.steps - context
            before = max(start for start in states if start <= last)
            state, _ = run(states[before], before, last)
            return _reduce(value, weight, reduction), state

        return jax.value_and_grad(objective, argnums=argnums, has_aux=True)(call.params, call.state, call.xs)

    return gradient


def _runner(step: Any, loss: Loss, call: Call, params: Any, xs: Any) -> Callable[..., tuple[Any, jax.Array]]:
    """`run(state, start, end) -> (state, losses)` of some steps, with losses of `[end - start, B]`."""
    batched_step = jax.vmap(step, in_axes=(None, 0, 0))
    batched_loss = jax.vmap(masked(loss))
    reset = jnp.zeros((call.steps, call.batch), bool) if call.reset is None else call.reset

    def put_back(state, reset_t):
        def leaf(s, initial):
            return jnp.where(reset_t.reshape(-1, *[1] * (s.ndim - 1)), initial, s)

        if call.reset_state is not None:
            return jax.tree.map(leaf, state, call.reset_state)
        keys = jax.dtypes.prng_key
        return jax.tree.map(lambda s: s if jnp.issubdtype(s.dtype, keys) else leaf(s, jnp.zeros_like(s)), state)

    def body(state, inputs):
        x_t, target_t, weights_t, reset_t = inputs
        if call.reset is not None:
            state = put_back(state, reset_t)
        state, output = batched_step(params, state, x_t)
        return state, batched_loss(output, target_t, weights_t)

    def run(state, start, end):
        return jax.lax.scan(
            body, state, jax.tree.map(lambda a: a[start:end], (xs, call.targets, _weights(call), reset))
        )

    return run


def _weights(call: Call) -> jax.Array:
    return jnp.ones((call.steps, call.batch), call.loss_dtype) if call.mask is None else call.mask


def _reduce(value: jax.Array, weight: jax.Array, reduction: str) -> jax.Array:
    if reduction == "sum":
        return value
    return jnp.where(weight == 0, 0, value / jnp.where(weight == 0, 1, weight))
