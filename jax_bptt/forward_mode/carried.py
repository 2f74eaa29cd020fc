"""Gradients whose influence ∂h_t/∂θ is carried forwards in time: exactly, and as SnAp-1 and e-prop approximate it.

    init, gradient = rtrl(step, loss)
    carry = init(params, state)
    (loss, carry), grads = gradient(params, carry, xs, targets)      as many steps as there are; the carry is handed on

RTRL keeps M_t = ∂h_t/∂θ, as far as it can be other than zero. SnAp-1 keeps of it what ∂⁺h_t/∂θ has. e-prop is RTRL of
another step, one whose products read a state that is constant.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.options import check_count, check_options
from jax_bptt.checks.trees import arrays, check_batched, check_differentiable, check_like
from jax_bptt.engine.call import Call
from jax_bptt.forward_mode.influence import Influence, carry_over
from jax_bptt.forward_mode.layout import Layout, bytes_of, read_layout, shapes_of
from jax_bptt.forward_mode.recursion import CarryOver, gradient_of
from jax_bptt.forward_mode.stopped import with_stopped_products
from jax_bptt.model import ForwardMode, Loss, Model, PyTree, Reduction, Step, step_of

LIMIT = 2**32
"""Bytes that an influence may take where the user does not say."""


class Carry(NamedTuple):
    """What is handed on from step to step, and from chunk to chunk; all leaves have the batch first."""

    state: PyTree
    """The state after the last step, `[B, …]`."""
    influence: Influence | None
    """∂h/∂θ of each leaf of the state and of each leaf of the params, `[B, free axes of the state, axes of the param]`,
    None where it is zero; complex leaves have real and imaginary part along one more axis, the last. None in place of
    all of it, before it was laid out, is zero."""


def rtrl(model: Model, loss: Loss, *, reduction: Reduction = "sum", memory: int = LIMIT) -> ForwardMode[Carry]:
    """The exact gradient, carried forwards in time: real-time recurrent learning.

    For h_t, ŷ_t = step(θ, h_{t−1}, x_t) and L = Σ_t ℓ(ŷ_t, y_t), with the influence M_t = ∂h_t/∂θ,

        M_t   = (∂h_t/∂h_{t−1}) M_{t−1} + ∂⁺h_t/∂θ,    M_0 = 0
        ∂L/∂θ = Σ_t (∂ℓ_t/∂h_t)ᵀ M_t + ∂⁺ℓ_t/∂θ

    where ∂⁺ are immediate derivatives, the state held constant. Nothing of the past is kept but M: the memory does not
    depend on T, and the gradient of a stream is there after every step. With params fixed, the gradients of
    successive chunks, the carry handed on, add up to that of the whole; where they are updated in between, M is that of
    the params as they were.

    M has B·H·|θ| numbers, H of the state. Where ∂h_t/∂h_{t−1} is elementwise, as in gated linear recurrences, and each
    element of θ has to do with one unit of the state in a step, it has B·|θ|, and so for each pair of a leaf of the
    state and a leaf of the params, and along each of their axes, by itself. (`diagnostics.explain` tells of
    ∂h_t/∂h_{t−1}.) A step takes as many operations, or H times as many. Both Jacobians are made of pullbacks, so that a
    step with a custom derivative (surrogate gradients of spikes) has that one, if it is linear in the cotangent.

    Args:
        model, loss, reduction: as for `bptt`; "mean" is over the steps and examples of a call.
        memory: bytes that M may take.

    Returns:
        A pair `init, gradient`.

        * `init(params, state, xs=None) -> carry`, with M = 0. With xs like those of a chunk (`[T, B, …]`), or of a step
          without inputs, M is laid out at once, as a `lax.scan` over chunks needs it; else by the first call.
        * `gradient(params, carry, xs, targets, mask=None, reset=None, reset_state=None, length=None)`, which returns
          `((loss, carry), grads)`: the arguments are those of what `bptt` returns, with the carry in the place of the
          state, and `grads` are of the params. A reset puts M back to zero, too. `training.train_step`,
          `training.train_online` and `data_parallel` take it.

        Both are pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form; of
            `memory`, where M would take more.

    Source:
        R. J. Williams and D. Zipser, "A learning algorithm for continually running fully recurrent neural networks",
        1989; K. Irie, A. Gopalakrishnan and J. Schmidhuber, "Exploring the promise and limits of real-time recurrent
        learning", 2023, for elementwise recurrences.
    """
    return _carried(step_of(model), loss, reduction, memory, diagonal=False)


def snap1(model: Model, loss: Loss, *, reduction: Reduction = "sum", memory: int = LIMIT) -> ForwardMode[Carry]:
    """The sparse one-step approximation of RTRL: of M what a param does to the state in one step.

        M_t = P ⊙ ((∂h_t/∂h_{t−1}) M_{t−1} + ∂⁺h_t/∂θ),    P = 1 where ∂⁺h_t/∂θ may be other than zero, else 0

    so that of ∂h_t/∂h_{t−1} the diagonal counts, where each element of θ has to do with one unit of a leaf in a step:
    M has B·|θ| numbers then. Exact where the Jacobian is elementwise. For the diagonal of a Jacobian that is not, each
    step takes H pullbacks to the state.

    Args:
        model, loss, reduction, memory: as for `rtrl`.

    Returns:
        A pair `init, gradient`, as of `rtrl`.

    Raises:
        TypeError, ValueError: as `rtrl`.

    Source:
        J. Menick, E. Elsen, U. Evci, S. Osindero, K. Simonyan and A. Graves, "Practical real time recurrent learning
        with a sparse approximation", 2021.
    """
    return _carried(step_of(model), loss, reduction, memory, diagonal=True)


def eprop(model: Model, loss: Loss, *, reduction: Reduction = "sum", memory: int = LIMIT) -> ForwardMode[Carry]:
    """Eligibility propagation: of the influence what the state does to itself around its products.

        h_t = f(A sg(h_{t−1}) + B x_t, h_{t−1}),    ∂sg(h)/∂h = 0

    The exact gradient of the step whose products read a state before the step that is constant: `@`, `einsum`, and what
    else is costly, convolutions, solvers and inner loops, but not sums of elementwise products. What travels from unit
    to unit through weights is left out, and what a unit keeps of itself (the leak of a neuron, the gate of a memory) is
    not. The learning signal is the exact ∂⁺ℓ_t/∂h_t. M has B·|θ| numbers where what is left of the Jacobian is
    elementwise. Of a leaky unit this is random-feedback local online learning, but for its feedback, which is exact.

    Args:
        model, loss, reduction, memory: as for `rtrl`.

    Returns:
        A pair `init, gradient`, as of `rtrl`.

    Raises:
        TypeError, ValueError: as `rtrl`.

    Source:
        G. Bellec, F. Scherr, A. Subramoney, E. Hajek, D. Salaj, R. Legenstein and W. Maass, "A solution to the learning
        dilemma for recurrent networks of spiking neurons", 2020; J. M. Murray, "Local online learning in recurrent
        networks with random feedback", 2019.
    """
    return _carried(with_stopped_products(step_of(model)), loss, reduction, memory, diagonal=False)


def _carried(step: Step, loss: Loss, reduction: Reduction, memory: int, *, diagonal: bool) -> ForwardMode[Carry]:
    check_options(loss, reduction, 0)
    memory = check_count("memory", memory)

    def init(params: PyTree, state: PyTree, xs: PyTree = None) -> Carry:
        check_differentiable("params", arrays("params", params))
        check_batched(arrays("state", state))
        is_told = bool(jax.tree.leaves(xs))
        try:
            arguments = Arguments(params, state, xs, length=None if is_told else 1)
            call = check_call(step, None, arguments, argnums=(0,))
        except Exception:
            if is_told:
                raise
            return Carry(arrays("state", state), None)  # of a step that has inputs, as it seems
        return Carry(call.state, _zeros(_laid_out(call, memory, diagonal), call.batch))

    def begin(call: Call, carry: Carry) -> tuple[tuple[Influence], CarryOver]:
        layout = _laid_out(call, memory, diagonal)
        kept = _zeros(layout, call.batch) if carry.influence is None else carry.influence
        check_like(
            kept, shapes_of(layout, call.batch), lambda _: "carry.influence: found", "as init(params, state, xs) has it"
        )
        return (kept,), functools.partial(carry_over, layout, call.batch)

    return ForwardMode(init, gradient_of(step, loss, reduction, Carry, begin))


def _laid_out(call: Call, memory: int, diagonal: bool) -> Layout:
    """The layout of the influence, if it may take as much memory."""
    layout = read_layout(call, diagonal=diagonal)
    size = bytes_of(layout, call.batch)
    if size > memory:
        raise ValueError(
            f"memory: found {memory}, expected at least {size} bytes, those of the influence ∂h/∂θ of "
            f"{call.batch[0]} examples; give as much, or use jb.uoro or jb.truncated_bptt"
        )
    return layout


def _zeros(layout: Layout, batch: tuple[int, ...]) -> Influence:
    return jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes_of(layout, batch))
