"""The gradient of a call by `jax.grad`: one `lax.scan` over all steps, or one for each window of truncation.

A batched step in a scan, differentiated by JAX; `stop_gradient` makes a constant of the state that a window starts
from, and a gate of what a state hands back.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.engine.call import Call, vary_data
from jax_bptt.engine.leaves import divide, is_key
from jax_bptt.engine.objective import masked
from jax_bptt.model import Losses, PyTree, Reduction


def through_gates(
    call: Call, *, argnums: int | Sequence[int], reduction: Reduction, burn_in: int, context: int = 0
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """The exact gradient of a call, or of one with gates the gradient through them."""

    def objective(params: PyTree, state: PyTree, xs: PyTree) -> tuple[jax.Array, PyTree]:
        run = _runner(call, params, xs)
        if burn_in:
            state = jax.tree.map(jax.lax.stop_gradient, run(state, 0, burn_in)[0])
        returned, losses = run(state, burn_in, call.steps - context)
        if context:
            losses = jnp.concatenate([losses, run(returned, call.steps - context, call.steps)[1]])
        value, weight = losses[context:].sum(), _weights(call)[burn_in + context :].sum()
        return value if reduction == "sum" else divide(value, weight), returned

    return jax.value_and_grad(objective, argnums=argnums, has_aux=True)(call.params, call.state, call.xs)


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


def telescope(
    call: Call, drawn: jax.Array, scale: jax.Array, *, horizons: Sequence[int], **several: Any
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """Loss and state, differentiated as `scale` times what two horizons differ in; and that difference of gradients.

    Args:
        drawn: which of the horizons is the longer one.
        several: what else `sum_of_windows` takes.
    """

    def of_pair(shorter: int | None, longer: int) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        returned, grads = sum_of_windows(call, k2=longer, **several)
        if shorter is None:
            less, grads_of_less = jax.tree.map(lambda a: a if is_key(a) else jnp.zeros_like(a), (returned, grads))
        else:
            less, grads_of_less = sum_of_windows(call, k2=shorter, **several)

        def derived(long: jax.Array, short: jax.Array) -> jax.Array:
            if not jnp.issubdtype(long.dtype, jnp.inexact):
                return long
            more, rest = (a - jax.lax.stop_gradient(a) for a in (long, short))
            return (long + (scale - 1) * more - scale * rest).astype(long.dtype)

        difference = jax.tree.map(lambda a, b: (scale * (a - b)).astype(a.dtype), grads, grads_of_less)
        return jax.tree.map(derived, returned, less), difference

    pairs = zip([None, *horizons[:-1]], horizons, strict=True)
    return jax.lax.switch(drawn, [functools.partial(of_pair, *pair) for pair in pairs])


def _runner(call: Call, params: PyTree, xs: PyTree) -> Callable[..., tuple[PyTree, jax.Array]]:
    """`run(state, start, end) -> (state, losses)` of some steps, with losses of `[end - start, B]`."""
    assert call.loss is not None
    varied = vary_data(call._replace(params=params, xs=xs))
    xs = varied.xs
    batched_step = jax.vmap(call.step, in_axes=(None, 0, 0))
    batched_loss = jax.vmap(masked(call.loss))
    reset = jnp.zeros((call.steps, *call.batch), bool) if call.reset is None else call.reset
    gate = jnp.ones((call.steps, *call.batch), call.loss_dtype) if call.gate is None else call.gate

    def put_back(state: PyTree, reset_t: jax.Array) -> PyTree:
        initial = jax.tree.map(lambda s: s if is_key(s) else jnp.zeros_like(s), state)
        initial = initial if call.reset_state is None else call.reset_state
        return jax.tree.map(lambda s, i: jnp.where(reset_t.reshape(-1, *[1] * (s.ndim - 1)), i, s), state, initial)

    def through_gate(state: PyTree, gate_t: jax.Array) -> PyTree:
        def of(h: jax.Array) -> jax.Array:
            if not jnp.issubdtype(h.dtype, jnp.inexact):
                return h
            scale = (gate_t - 1).reshape(-1, *[1] * (h.ndim - 1)).astype(h.dtype)
            return h + scale * (h - jax.lax.stop_gradient(h))

        return jax.tree.map(of, state)

    def body(state: PyTree, inputs: tuple[PyTree, PyTree, jax.Array, jax.Array, jax.Array]) -> tuple[PyTree, jax.Array]:
        x_t, target_t, weights_t, reset_t, gate_t = inputs
        if call.gate is not None:
            state = through_gate(state, gate_t)
        if call.reset is not None:
            state = put_back(state, reset_t)
        state, output = batched_step(params, state, x_t)
        return state, batched_loss(output, target_t, weights_t)

    def run(state: PyTree, start: int, end: int) -> tuple[PyTree, jax.Array]:
        of_steps = jax.tree.map(lambda a: a[start:end], (xs, varied.targets, _weights(varied), reset, gate))
        return jax.lax.scan(body, vary_data(varied._replace(state=state)).state, of_steps)

    return run


def _weights(call: Call) -> jax.Array:
    return jnp.ones((call.steps, *call.batch), call.loss_dtype) if call.mask is None else call.mask
