"""The same gradients by `jax.grad`, as plain as can be: what everything else is compared with.

A batched step in one `lax.scan`, differentiated by JAX; for truncation one such scan per window, from a state that
`stop_gradient` makes a constant. Called like the functions of the same names at the top of the package; `window`,
`save` and `parallel` are ways of computing that these do not have.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.checks.arguments import over_drawn_sequences, over_sequences
from jax_bptt.checks.options import (
    check_argnums,
    check_cut,
    check_cuts,
    check_horizons,
    check_options,
    check_truncation,
)
from jax_bptt.engine.flatten import Call, vary_data
from jax_bptt.engine.leaves import divide, is_key
from jax_bptt.engine.objective import masked
from jax_bptt.engine.truncation.draws import draw_gates, draw_horizon
from jax_bptt.model import DrawnGradient, GradientFunction, Loss, Losses, Model, PyTree, Reduction, step_of


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
        return through_gates(call, argnums=argnums, reduction=reduction, burn_in=burn_in)

    return gradient


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


def artbp(
    model: Model,
    loss: Loss,
    k1: int,
    cut: float | Sequence[float],
    *,
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> DrawnGradient:
    """The gradient cut at random, as `jax_bptt.artbp` computes it, by `jax.grad`.

    A state h + (γ − 1)(h − stop_gradient(h)) has the value h, and hands back γ·δ.

    Args:
        model, loss, k1, cut, argnums, reduction, burn_in, context: as for `jax_bptt.artbp`, which draws the same of the
            same key.

    Returns:
        `gradient(…, key)`, as `jax_bptt.artbp` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.artbp`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)
    k1, _, context = check_truncation(k1, k1, "newest", context)
    cut = check_cut(cut)

    @over_drawn_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call, key: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        gates = draw_gates(key, check_cuts(cut, call.steps, k1, burn_in), call, k1, burn_in)
        several = {"argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
        return through_gates(call._replace(gate=gates), **several)

    return gradient


def randomized_telescope(
    model: Model,
    loss: Loss,
    k1: int,
    horizons: Sequence[int],
    probabilities: Sequence[float],
    *,
    losses: Losses = "newest",
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    burn_in: int = 0,
    context: int = 0,
) -> DrawnGradient:
    """The telescope's one term, as `jax_bptt.randomized_telescope` draws and computes it, by `jax.grad`.

    Args:
        model, loss, k1, horizons, probabilities, losses, argnums, reduction, burn_in, context: as for
            `jax_bptt.randomized_telescope`.

    Returns:
        `gradient(…, key)`, as `jax_bptt.randomized_telescope` does.

    Raises:
        TypeError, ValueError: as `jax_bptt.randomized_telescope`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    burn_in, _ = check_options(loss, reduction, burn_in)
    k1, _, context = check_truncation(k1, k1, losses, context)
    many, shares = check_horizons(horizons, probabilities, k1, losses)

    @over_drawn_sequences(step, loss, argnums=chosen, burn_in=burn_in, context=context)
    def gradient(call: Call, key: jax.Array) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        several = {"losses": losses, "argnums": argnums, "reduction": reduction, "burn_in": burn_in, "context": context}
        return telescope(call, *draw_horizon(key, shares, call), k1=k1, horizons=many, **several)

    return gradient


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
