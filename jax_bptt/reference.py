"""The same gradients by `jax.grad`, as plain as can be: what everything else is compared with.

A batched step in one `lax.scan`, differentiated by JAX; for truncation one such scan per window, from a state that
`stop_gradient` makes a constant. Called like the functions of the same names at the top of the package; `window`,
`save` and `parallel` are ways of computing that these do not have.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jax_bptt.checks.arguments import over_sequences
from jax_bptt.checks.options import check_argnums, check_options, check_truncation
from jax_bptt.engine.flatten import Call, vary_data
from jax_bptt.engine.leaves import divide, is_key
from jax_bptt.engine.objective import masked
from jax_bptt.model import GradientFunction, Loss, Losses, Model, PyTree, Reduction, step_of


def bptt(
    model: Model, loss: Loss, *, argnums: int | Sequence[int] = 0, reduction: Reduction = "sum", burn_in: int = 0
) -> GradientFunction:
    """The exact gradient, as `jax_bptt.bptt` computes it, by `jax.grad` through one `lax.scan`.

    Args:
        model, loss, argnums, reduction, burn_in: as for `jax_bptt.bptt`; but that `jax.grad` multiplies the derivatives
            of what the readout makes of a masked step by zero, which where they are infinite is NaN.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> ((loss, state), grads)`, as
        `jax_bptt.bptt` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.bptt`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)

    @over_sequences(step, loss, argnums=chosen, burn_in=burn_in)
    def gradient(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        def objective(params: PyTree, state: PyTree, xs: PyTree) -> tuple[jax.Array, PyTree]:
            run = _runner(call, params, xs)
            if burn_in:
                state = jax.tree.map(jax.lax.stop_gradient, run(state, 0, burn_in)[0])
            state, losses = run(state, burn_in, call.steps)
            value, weight = losses.sum(), _weights(call)[burn_in:].sum()
            return value if reduction == "sum" else divide(value, weight), state

        return jax.value_and_grad(objective, argnums=argnums, has_aux=True)(call.params, call.state, call.xs)

    return gradient


def truncated_bptt(
    model: Model,
    loss: Loss,
    k1: int,
    k2: int,
    *,
    losses: Losses = "newest",
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> GradientFunction:
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
    burn_in, _ = check_options(loss, reduction, burn_in)
    k1, k2, context = check_truncation(k1, k2, losses, context)

    @over_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        several = {"losses": losses, "argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
        return sum_of_windows(call, k1, k2, **several)

    return gradient


def sum_of_windows(
    call: Call,
    k1: int,
    k2: int,
    *,
    losses: Losses,
    argnums: int | Sequence[int],
    reduction: Reduction,
    burn_in: int,
    context: int,
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """The truncated gradient of a call, one window after the other."""
    first = burn_in + context  # the first step with a loss

    def objective(params: PyTree, state: PyTree, xs: PyTree) -> tuple[jax.Array, PyTree]:
        run = _runner(call, params, xs)
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
        return value if reduction == "sum" else divide(value, weight), state

    return jax.value_and_grad(objective, argnums=argnums, has_aux=True)(call.params, call.state, call.xs)


def _runner(call: Call, params: PyTree, xs: PyTree) -> Callable[..., tuple[PyTree, jax.Array]]:
    """`run(state, start, end) -> (state, losses)` of some steps, with losses of `[end - start, B]`."""
    assert call.loss is not None
    varied = vary_data(call._replace(params=params, xs=xs))
    xs = varied.xs
    batched_step = jax.vmap(call.step, in_axes=(None, 0, 0))
    batched_loss = jax.vmap(masked(call.loss))
    reset = jnp.zeros((call.steps, *call.batch), bool) if call.reset is None else call.reset

    def put_back(state: PyTree, reset_t: jax.Array) -> PyTree:
        initial = jax.tree.map(lambda s: s if is_key(s) else jnp.zeros_like(s), state)
        initial = initial if call.reset_state is None else call.reset_state
        return jax.tree.map(lambda s, i: jnp.where(reset_t.reshape(-1, *[1] * (s.ndim - 1)), i, s), state, initial)

    def body(state: PyTree, inputs: tuple[PyTree, PyTree, jax.Array, jax.Array]) -> tuple[PyTree, jax.Array]:
        x_t, target_t, weights_t, reset_t = inputs
        if call.reset is not None:
            state = put_back(state, reset_t)
        state, output = batched_step(params, state, x_t)
        return state, batched_loss(output, target_t, weights_t)

    def run(state: PyTree, start: int, end: int) -> tuple[PyTree, jax.Array]:
        of_steps = jax.tree.map(lambda a: a[start:end], (xs, varied.targets, _weights(varied), reset))
        return jax.lax.scan(body, vary_data(varied._replace(state=state)).state, of_steps)

    return run


def _weights(call: Call) -> jax.Array:
    return jnp.ones((call.steps, *call.batch), call.loss_dtype) if call.mask is None else call.mask
