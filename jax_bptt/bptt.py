"""Exact backpropagation through time, by the hand-rolled reverse scan over windows.

weights = prepare(params)                             split.py
states  = forward over windows, first to last         forward.py
δ, gradients = reverse over windows, last to first    reverse.py
params gradient = pullback of prepare(gradients)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.checks import Call, check_argnums, check_call, check_choice, check_count, check_loss
from jax_bptt.forward import forward
from jax_bptt.model import Loss, Model, Step, step_of
from jax_bptt.reverse import Objective, Wanted, WindowGradient, accumulator, reverse
from jax_bptt.split import Leaves, combine, differentiable, split
from jax_bptt.windows import Windows, default_size, example, join

SAVES = ("states", "boundaries")
REDUCTIONS = ("sum", "mean")


def bptt(
    model: Model,
    loss: Loss,
    *,
    argnums: int | Sequence[int] = 0,
    reduction: str = "sum",
    window: int | None = None,
    save: str | None = None,
) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
    """The exact gradient of a recurrent model's loss, by backpropagation through time.

    For h_t, ŷ_t = step(θ, h_{t−1}, x_t) and L = Σ_t ℓ(ŷ_t, y_t), with δ_t = ∂L/∂h_t,

        δ_t   = (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1}
        ∂L/∂θ = Σ_t (∂⁺h_t/∂θ)ᵀ δ_t + Σ_t (∂⁺ŷ_t/∂θ)ᵀ ∂ℓ_t/∂ŷ_t

    where ∂⁺ is the immediate partial derivative: h_{t−1} is held constant. Only the recursion of δ runs step by step;
    everything else is done for all steps of a window at once.

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`.
        loss: `loss(output, target) -> scalar` of one step of one example.
        argnums: with respect to what, as in `jax.grad`: 0 params, 1 state, 2 xs, or several.
        reduction: "sum", Σ mask·ℓ over all steps and examples; or "mean", that over the sum of the weights (0, with
            gradients of 0, where the weights sum to 0).
        window: steps in one window, the stretch of time whose steps are done at once; chosen by
            `jax_bptt.windows.default_size` where None. Any size gives the same gradient.
        save: what the forward pass keeps: "states", every state, or "boundaries", the first state of each window, from
            which the backward pass runs it again: O(√T) memory for one more forward pass. None is "states".

    Returns:
        `gradient(params, state, xs, targets, mask=None) -> ((loss, state), grads)`, called like
        `jax.value_and_grad(..., has_aux=True)`, where

        * `state` is a pytree of `[B, …]`, `xs` and `targets` of `[T, B, …]`;
        * `mask` are weights of the losses, `[T]` or `[T, B]`; where one is 0, output and target do not matter,
          NaN included;
        * the state returned is that after the last step;
        * `grads` has the structure of the argument named by `argnums`, or is a tuple of such.

        It is a pure function and not jitted: wrap it, or the training step around it, in `jax.jit`.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.

    Source:
        P. J. Werbos, "Backpropagation through time: what it does and how to do it", 1990;
        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", 2013, for the
        immediate partial derivative; T. Chen, B. Xu, C. Zhang and C. Guestrin, "Training deep nets with sublinear
        memory cost", 2016, for `save="boundaries"`.
    """
    chosen = check_argnums(argnums)
    step = step_of(model)
    options = _check_options(loss, reduction, window, save)

    def gradient(params: Any, state: Any, xs: Any, targets: Any, mask: Any = None) -> tuple[tuple[jax.Array, Any], Any]:
        call = check_call(step, loss, chosen, params, state, xs, targets, mask)
        result = _backpropagate(step, loss, call, options, chosen, lambda window: window.xs)
        by_argument = (
            lambda: result.params,
            lambda: _like(call.state, result.start),
            lambda: _like(call.xs, result.emitted),
        )
        grads = tuple(by_argument[n]() for n in chosen)
        return (result.loss, result.state), grads[0] if isinstance(argnums, int) else grads

    return gradient


def state_gradients(
    model: Model,
    loss: Loss,
    *,
    reduction: str = "sum",
    window: int | None = None,
    save: str | None = None,
) -> Callable[..., Any]:
    """δ_t = ∂L/∂h_t for every t: how much the whole loss changes with the state after each step.

        δ_t = (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1},    δ_{T+1} = 0

    ŷ_t counts as a function of h_t wherever the step computes it from the very values that it returns as the state.

    Args:
        model, loss, reduction, window, save: as for `bptt`.

    Returns:
        `deltas(params, state, xs, targets, mask=None)`, of the arguments of the function that `bptt` returns. It
        returns a pytree of the structure of the state, with leaves of `[T, B, …]`: entry t is with respect to the
        state after step t, counted from 0. Leaves without a derivative (integers, keys) are zeros of dtype `float0`,
        as in `jax.vjp`.

    Raises:
        TypeError, ValueError: as `bptt`.

    Source:
        P. J. Werbos, "Backpropagation through time: what it does and how to do it", 1990.
    """
    step = step_of(model)
    options = _check_options(loss, reduction, window, save)

    def deltas(params: Any, state: Any, xs: Any, targets: Any, mask: Any = None) -> Any:
        call = check_call(step, loss, (), params, state, xs, targets, mask)
        result = _backpropagate(step, loss, call, options, (), lambda window: window.deltas)
        states = jax.tree.map(lambda a: jax.ShapeDtypeStruct((call.steps, *a.shape), a.dtype), call.state)
        return _like(states, result.emitted)

    return deltas


class _Options(NamedTuple):
    reduction: str
    window: int | None
    save: str


class _Result(NamedTuple):
    loss: jax.Array
    state: Any
    params: Any
    """∂L/∂params."""
    start: Leaves
    """∂L/∂state."""
    emitted: Leaves


def _check_options(loss: Loss, reduction: str, window: int | None, save: str | None) -> _Options:
    check_loss(loss)
    check_choice("reduction", reduction, REDUCTIONS)
    if save is not None:
        check_choice("save", save, SAVES)
    return _Options(reduction, None if window is None else check_count("window", window), save or "states")


def _backpropagate(
    step: Step,
    loss: Loss,
    call: Call,
    options: _Options,
    argnums: Sequence[int],
    emit: Callable[[WindowGradient], Leaves],
) -> _Result:
    """Forward and reverse over the windows of one checked call."""
    params, params_structure = jax.tree.flatten(call.params)
    state, state_structure = jax.tree.flatten(call.state)
    xs = jax.tree.leaves(call.xs)
    parts = split(step, call.params, example(call.state, 1), example(call.xs, 2))
    size = options.window or default_size(call.steps, call.batch, options.save)
    windows = Windows(call.steps, min(call.steps, size))

    def prepare(params):
        weights = parts.prepare(params)
        wanted = [0 in argnums and from_params for from_params in parts.from_params]
        trained = [w if want else None for w, want in zip(differentiable(weights), wanted, strict=True)]
        return trained, weights

    trained, pull_prepare, weights = jax.vjp(prepare, params, has_aux=True)
    end, stored = forward(parts, weights, state, xs, windows, options.save)
    (value, weights_bar, start), emitted = reverse(
        parts,
        weights,
        end,
        stored,
        xs,
        Objective(loss, _scale(call, options.reduction), call.targets, call.mask),
        windows,
        options.save,
        Wanted(trained, differentiable(xs) if 2 in argnums else [None] * len(xs)),
        emit,
    )
    weights_bar = jax.tree.map(lambda bar, w: bar.astype(w.dtype), weights_bar, trained)
    return _Result(
        loss=value.astype(call.loss_dtype),
        state=jax.tree.unflatten(state_structure, end),
        params=jax.tree.unflatten(params_structure, pull_prepare(weights_bar)[0]),
        start=start,
        emitted=join(emitted),
    )


def _scale(call: Call, reduction: str) -> jax.Array:
    """What Σ mask·ℓ is multiplied with."""
    dtype = accumulator(call.loss_dtype)
    if reduction == "sum":
        return jnp.ones((), dtype)
    if call.mask is None:
        return jnp.asarray(1 / (call.steps * call.batch), dtype)
    weight = call.mask.sum(dtype=dtype)
    return jnp.where(weight == 0, 0, 1 / jnp.where(weight == 0, 1, weight))


def _like(tree: Any, leaves: Leaves) -> Any:
    """`leaves` in the structure of `tree`, with zeros of float0 for those that have no derivative."""
    old, structure = jax.tree.flatten(tree)
    zeros = [np.zeros(leaf.shape, jax.dtypes.float0) for leaf in old]
    return jax.tree.unflatten(structure, combine(leaves, zeros))
