"""Exact backpropagation through time, by the hand-rolled reverse scan over windows, or of whole steps.

How is the engine's, see `engine/window_gradient.py`: here is what is computed, and what of it is returned.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jax_bptt.checks.calls import over_sequences
from jax_bptt.checks.options import check_argnums, check_options
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call, vary_data
from jax_bptt.engine.flatten import unflatten_like
from jax_bptt.engine.passes import backpropagate, value_and_gradient
from jax_bptt.model import GradientFunction, Loss, Model, OverSequences, PyTree, Reduction, Save, step_of


def bptt(
    model: Model,
    loss: Loss,
    *,
    argnums: int | Sequence[int] = 0,
    reduction: Reduction = "sum",
    window: int | None = None,
    save: Save | None = None,
    unroll: int | None = None,
    burn_in: int = 0,
) -> GradientFunction:
    """The exact gradient of a recurrent model's loss, by backpropagation through time.

    For h_t, ŷ_t = step(θ, h_{t−1}, x_t) and L = Σ_t ℓ(ŷ_t, y_t), with δ_t = ∂L/∂h_t,

        δ_t   = (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1}
        ∂L/∂θ = Σ_t (∂⁺h_t/∂θ)ᵀ δ_t + Σ_t (∂⁺ŷ_t/∂θ)ᵀ ∂ℓ_t/∂ŷ_t

    where ∂⁺ is the immediate partial derivative: h_{t−1} is held constant. Only the recursion of δ runs step by step;
    everything else is done for all steps of a window at once. A step that moves or saves fewer bytes whole, or
    has something costly in it that is no product, is left whole, for JAX to differentiate, where neither `window`,
    `save`, a mask nor params of half precision ask for more; `diagnostics.explain` tells.

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`.
        loss: `loss(output, target) -> scalar` of one step of one example.
        argnums: with respect to what, as in `jax.grad`: 0 params, 1 state, 2 xs, or several.
        reduction: "sum", Σ mask·ℓ over all steps and examples; or "mean", that over the sum of the weights (0, with
            gradients of 0, where the weights sum to 0).
        window: steps in one window, the stretch of time whose steps are done at once; chosen by
            `jax_bptt.engine.plan.default_window` where None, which gives them more rows on a GPU. Any size gives the
            same gradient.
        save: what the forward pass keeps: "dots", of every step the little with which the backward pass need not
            compute a product of the transition again; "states", every state; or "boundaries", the first state of each
            window, from which the backward pass runs it again: O(√T) memory for one more forward pass. None is one of
            the first two, as `jax_bptt.engine.plan.default_save` chooses, and on a GPU "states" where there are
            several windows.
        unroll: time steps in one body of the compiled loops, as in `lax.scan`. None is 1, and on a GPU, where each body
            is launched, up to `jax_bptt.engine.plan.BODY_ON_GPU`, or no loop at all: where ∂h_t/∂h_{t−1} is elementwise
            (or of small blocks), δ is solved for all steps at once there, and the states, too, where the transition is
            affine in the state. Any number gives the same gradient.
        burn_in: the first steps only bring the state up to date: they have no loss, and no credit reaches them, nor
            through them the state.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None, length=None)`, which returns
        `((loss, state), grads)`, called like `jax.value_and_grad(..., has_aux=True)`, where

        * `state` is a pytree of `[B, …]`, `xs` and `targets` of `[T, B, …]`, or None where the step, or the loss, has
          none; T is told by `length` where neither is there;
        * `mask` are weights of the losses, `[T]` or `[T, B]`; where one is 0, output and target do not matter, nor what
          readout and loss make of that step, NaN and infinite derivatives included (the state goes on through it: a NaN
          among the inputs of a masked step is in all states after it);
        * `reset` are booleans, `[T]` or `[T, B]`: where true, the state is put back before that step, to zeros or to
          `reset_state`, a constant like the state, and no credit crosses (PRNG keys go on without a `reset_state`);
        * the state returned is that after the last step, and `grads` what `argnums` asks for, or a tuple of such.

        It is a pure function and not jitted: wrap it, or the training step around it, in `jax.jit`. There a batch that
        is divided among devices, along an automatic axis of a mesh, stays so (on CPU but for the gradients of weights).

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
    burn_in, asked = check_options(loss, reduction, burn_in, save, window=window, unroll=unroll)

    @over_sequences(step, loss, argnums=chosen, burn_in=burn_in)
    def gradient(call: Call) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        scheduled = schedule.exact(call.steps, burn_in)
        return value_and_gradient(call, scheduled, argnums, reduction=reduction, **asked)

    return gradient


def state_gradients(
    model: Model,
    loss: Loss,
    *,
    reduction: Reduction = "sum",
    window: int | None = None,
    save: Save | None = None,
    unroll: int | None = None,
    burn_in: int = 0,
) -> OverSequences[PyTree]:
    """δ_t = ∂L/∂h_t for every t: how much the whole loss changes with the state after each step.

        δ_t = (∂ŷ_t/∂h_t)ᵀ ∂ℓ_t/∂ŷ_t + (∂h_{t+1}/∂h_t)ᵀ δ_{t+1},    δ_{T+1} = 0

    ŷ_t counts as a function of h_t wherever the step computes it from the very values that it returns as the state.

    Args:
        model, loss, reduction, window, save, unroll, burn_in: as for `bptt`.

    Returns:
        `deltas(params, state, xs, targets, mask=None, reset=None, reset_state=None, length=None)`, of the arguments of
        the function that `bptt` returns. It returns a pytree of the structure of the state, with leaves of
        `[T, B, …]`: entry t is with respect to the state after step t, counted from 0; in the burn-in it is zero but
        for the last step. Leaves without a derivative (integers, keys) are zeros of dtype `float0`, as in `jax.vjp`.

    Raises:
        TypeError, ValueError: as `bptt`.

    Source:
        P. J. Werbos, "Backpropagation through time: what it does and how to do it", 1990.
    """
    step = step_of(model)
    burn_in, asked = check_options(loss, reduction, burn_in, save, window=window, unroll=unroll)

    @over_sequences(step, loss, burn_in=burn_in)
    def deltas(call: Call) -> PyTree:
        scheduled = schedule.exact(call.steps, burn_in)
        _, _, got = backpropagate(call, scheduled, reduction=reduction, deltas=True, **asked)
        after = got.deltas
        if burn_in:  # that of its last state is δ at the start
            after = [
                d if d is None else jnp.concatenate([jnp.zeros((burn_in - 1, *s.shape), d.dtype), s[None], d])
                for s, d in zip(got.start_bar, after, strict=True)
            ]
        states = jax.eval_shape(
            lambda state: jax.tree.map(lambda a: jnp.broadcast_to(a, (call.steps, *a.shape)), state),
            vary_data(call).state,  # δ varies along the axes of a mesh along which any data do: it is not to be summed
        )
        return unflatten_like(states, after)

    return deltas
