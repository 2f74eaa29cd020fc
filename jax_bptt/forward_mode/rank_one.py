"""The influence as one random product of two vectors, right on average: UORO.

    M_t ≈ h̃_t θ̃_tᵀ,    E[h̃_t θ̃_tᵀ] = M_t

h̃ has the size of the state and θ̃ that of the params, of each example.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.checks.options import check_options
from jax_bptt.checks.trees import arrays, check_batched, check_differentiable, check_key, check_like
from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import Leaves, accumulator, accumulators, add, combine, differentiable
from jax_bptt.engine.windows import vmap_leading
from jax_bptt.forward_mode.real_numbers import Step, to_real
from jax_bptt.forward_mode.recursion import CarryOver, Credit, gradient_of, pullback_of
from jax_bptt.model import ForwardMode, Loss, Model, PyTree, Reduction, step_of


class RankOne(NamedTuple):
    """What is handed on from step to step, and from chunk to chunk; all leaves have the batch first."""

    state: PyTree
    """The state after the last step, `[B, …]`."""
    of_state: Leaves
    """h̃, of each leaf of the state, `[B, …]`; None for leaves without a derivative."""
    of_params: Leaves
    """θ̃, of each leaf of the params, `[B, …]`."""
    key: jax.Array
    """Of each example, for what is drawn from here on."""


class _Kept(NamedTuple):
    of_state: Leaves
    of_params: Leaves
    key: jax.Array


def uoro(model: Model, loss: Loss, *, reduction: Reduction = "sum") -> ForwardMode[RankOne]:
    """An unbiased estimate of the gradient, carried forwards in time: unbiased online recurrent optimization.

    For h_t, ŷ_t = step(θ, h_{t−1}, x_t) and L = Σ_t ℓ(ŷ_t, y_t), with signs ν_t drawn of each example, ±1 alike,

        h̃_t   = ρ₀ (∂h_t/∂h_{t−1}) h̃_{t−1} + ρ₁ ν_t                     ρ₀² = ‖θ̃_{t−1}‖ / ‖(∂h_t/∂h_{t−1}) h̃_{t−1}‖
        θ̃_t   = θ̃_{t−1}/ρ₀ + (∂⁺h_t/∂θ)ᵀ ν_t / ρ₁                       ρ₁² = ‖(∂⁺h_t/∂θ)ᵀ ν_t‖ / ‖ν_t‖
        ∂L/∂θ ≈ Σ_t ∂⁺ℓ_t/∂θ + (∂⁺ℓ_t/∂h_{t−1} · h̃_{t−1}) θ̃_{t−1}

    where ∂⁺ are the immediate derivatives of one whole step and its loss, and a scale whose norms are zero is 1. Its
    expectation is the exact gradient; its variance grows with the time that the credit travels. A step takes two
    pullbacks and the transpose of one, and the memory is that of B·(|h| + |θ|) numbers, whatever the step.

    Args:
        model, loss, reduction: as for `rtrl`.

    Returns:
        A pair `init, gradient`, as of `rtrl`, but that it is `init(params, state, xs=None, *, key)`: all that is drawn
        comes from `key`, and the carry has what is left of it.

    Raises:
        TypeError, ValueError: as `rtrl`.

    Source:
        C. Tallec and Y. Ollivier, "Unbiased online recurrent optimization", 2018.
    """
    step = step_of(model)
    check_options(loss, reduction, 0)

    def init(params: PyTree, state: PyTree, xs: PyTree = None, *, key: jax.Array | None = None) -> RankOne:
        params, state = arrays("params", params), arrays("state", state)
        check_differentiable("params", params)
        batch = check_batched(state)
        return RankOne(state, *_zeros(params, state, batch), jax.random.split(check_key(key), batch))

    def begin(call: Call, carry: RankOne) -> tuple[_Kept, CarryOver]:
        expected = jax.eval_shape(lambda: _zeros(call.params, call.state, call.batch[0]))
        for name, found, like in zip(RankOne._fields[1:3], carry[1:3], expected, strict=True):
            check_like(found, like, lambda _, name=name: f"carry.{name}: found", "as init has it")
        return _Kept(*carry[1:]), functools.partial(_carry_over, call)

    return ForwardMode(init, gradient_of(step, loss, reduction, RankOne, begin))


def _zeros(params: PyTree, state: PyTree, batch: int) -> tuple[Leaves, Leaves]:
    """h̃ and θ̃ of zero."""
    of_state = accumulators([None if s is None else to_real(s) for s in differentiable(jax.tree.leaves(state))])
    of_params = accumulators([jax.eval_shape(to_real, p) for p in jax.tree.leaves(params)])
    return of_state, [jnp.broadcast_to(a, (batch, *a.shape)) for a in of_params]


def _carry_over(
    call: Call, step: Step, params: Leaves, before: Leaves, x: PyTree, kept: _Kept, credit: Credit
) -> tuple[_Kept, Leaves]:
    """h̃ and θ̃ after a step, and the estimate of its gradient, of what the credit to the state makes of it.

    The credit is taken back over the step first, so that its own immediate derivative is exact.
    """

    def of_example(
        params: Leaves, before: Leaves, x: PyTree, kept: _Kept, credit: Credit
    ) -> tuple[_Kept, tuple[Leaves, jax.Array]]:
        made, pull = pullback_of(step, params, before, x)
        zeros = jax.tree.map(jnp.zeros_like, made)
        # The pullback is linear in δ: the pullback of it carries a vector forwards, custom derivatives included.
        _, carry_forwards = jax.vjp(lambda delta: pull(delta)[1], zeros)
        (travelled,) = carry_forwards(
            jax.tree.map(lambda v, like: v.astype(like.dtype), kept.of_state, differentiable(before))
        )
        key, *drawn = jax.random.split(kept.key, 1 + len(before))
        signs = [
            None if a is None else jax.random.rademacher(k, a.shape, a.dtype) for k, a in zip(drawn, made, strict=True)
        ]
        bars, _ = pull(signs)
        old, new = _scale(kept.of_params, travelled), _scale(bars, signs)
        of_state = jax.tree.map(functools.partial(_mixed, old, new), travelled, signs, kept.of_state)
        of_params = jax.tree.map(functools.partial(_mixed, 1 / old, 1 / new), kept.of_params, bars, kept.of_params)
        params_bar, before_bar = pull(combine(credit.to_after, zeros))
        before_bar = add(before_bar, credit.to_before)
        products = jax.tree.map(lambda bar, v: (bar.astype(v.dtype) * v).sum(), before_bar, kept.of_state)
        return _Kept(of_state, of_params, key), (params_bar, _sum(jax.tree.leaves(products)))

    over_batch = vmap_leading(of_example, (None, 0, 0, 0, 0), call.batch)
    after, (params_bar, weight) = over_batch(params, before, x, kept, credit)
    return after, [
        bar.astype(v.dtype).sum(0) + jnp.einsum("b,b...->...", weight.astype(v.dtype), v)
        for bar, v in zip(params_bar, kept.of_params, strict=True)
    ]


def _mixed(a: jax.Array, b: jax.Array, some: jax.Array, more: jax.Array, like: jax.Array) -> jax.Array:
    """a·some + b·more, in the dtype of a third."""
    return a.astype(like.dtype) * some.astype(like.dtype) + b.astype(like.dtype) * more.astype(like.dtype)


def _scale(numerator: Leaves, denominator: Leaves) -> jax.Array:
    """√(‖numerator‖ / ‖denominator‖); 1 where either is zero."""
    above, below = map(_squares, (numerator, denominator))
    there = (above > 0) & (below > 0)
    return jnp.where(there, jnp.where(there, above, 1) / jnp.where(there, below, 1), 1) ** 0.25


def _squares(leaves: Leaves) -> jax.Array:
    """‖leaves‖²."""
    return _sum([jnp.square(a.astype(accumulator(a.dtype))).sum() for a in jax.tree.leaves(leaves)])


def _sum(numbers: list[jax.Array]) -> jax.Array:
    """Their sum, in the widest of their dtypes."""
    widest = max((a.dtype for a in numbers), key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.dtype(jnp.float32))
    return functools.reduce(jnp.add, [a.astype(widest) for a in numbers], jnp.zeros((), widest))
