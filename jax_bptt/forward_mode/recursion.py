"""The loop of forward mode: the gradient of each step's loss as soon as the step is read, and nothing kept of the past.

    M_t     = ∂h_t/∂θ = (∂h_t/∂h_{t−1}) M_{t−1} + ∂⁺h_t/∂θ
    ∂ℓ_t/∂θ = ∂⁺ℓ_t/∂θ + (∂ℓ_t/∂h_t)ᵀ M_t                  and (∂⁺ℓ_t/∂h_{t−1})ᵀ M_{t−1}, where the readout reads that

What stands for M, `kept`, is for `influence` and `rank_one` to say: a `CarryOver` takes it over a step, and tells what
the credit of the step's losses makes of it.

Inside, complex leaves are pairs of real ones, so that no derivative need be holomorphic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.engine.flatten import (
    Call,
    put_back,
    reset_to_of,
    shapes_of_one,
    unflatten_like,
    unflatten_state,
    vary_data,
)
from jax_bptt.engine.leaves import (
    Leaves,
    accumulators,
    add,
    axes_of,
    combine,
    differentiable,
    only,
    vary,
    varying,
    where,
)
from jax_bptt.engine.objective import Objective, instead_of_masked
from jax_bptt.engine.solvers.sequential import scan_steps
from jax_bptt.engine.step import graph
from jax_bptt.engine.step.split import SplitStep, split_step
from jax_bptt.engine.windows import vmap_leading
from jax_bptt.model import PyTree

Step = Callable[[Leaves, Leaves, PyTree], tuple[Leaves, PyTree]]
"""`step(params, state, x) -> (state, output)` of one example, of real leaves."""


class Credit(NamedTuple):
    """Derivatives of a step's losses by what its readout reads of the state, leaves of `[B, …]`; None is zero."""

    to_after: Leaves
    to_before: Leaves


CarryOver = Callable[[Step, Leaves, Leaves, PyTree, Any, Credit], tuple[Any, Leaves]]
"""`(step, params, before, x, kept, credit) -> (kept, gradient)`: what is kept after a step, what credit makes of it."""


def over_time(
    call: Call, objective: Objective, kept: Any, carry_over: CarryOver
) -> tuple[jax.Array, PyTree, Any, PyTree]:
    """The loss, the state after the last step, what is kept then, and the gradient of the params.

    Args:
        kept: what stands for M before the first step, leaves of `[B, …]`.

    Raises:
        ValueError: for a step that reads results of side effects.
    """
    call = vary_data(call)
    _check_effects(call)
    step, axes = in_real_numbers(call), axes_of((call.state, call.xs))
    params = [vary(p, axes) for p in map(to_real, jax.tree.leaves(call.params))]
    parts = split_step(step, *real_shapes(call))
    reset_to = [None if s is None else to_real(s) for s in reset_to_of(call)]

    def one_step(carry: Any, of_step: Any) -> tuple[Any, None]:
        (state, kept, loss, grads), (x, targets, mask, reset) = carry, of_step
        before = put_back(reset, reset_to, state)
        kept = kept if reset is None else _forgotten(reset, kept)
        after = vmap_leading(_transition(parts), (None, 0, 0), call.batch)(params, before, x)
        rows = Rows(before, after, x, targets)
        losses, params_bar, credit = _credit(call, parts, objective._replace(mask=mask), params, rows)
        kept, by_influence = carry_over(step, params, before, x, kept, credit)
        grads = add(add(grads, params_bar), by_influence)
        after = [vary(new, varying(old)) for new, old in zip(after, state, strict=False)]
        return (after, kept, loss + losses.sum(), grads), None

    start = list(map(to_real, jax.tree.leaves(call.state)))
    kept = jax.tree.map(lambda a: vary(a, axes), kept)
    carry = start, kept, objective.zero, [vary(a, axes) for a in accumulators(params)]
    timed = call.xs, objective.targets, objective.mask, call.reset
    (state, kept, loss, grads), _ = scan_steps(one_step, carry, timed, call.steps)
    grads = [_gradient_from_real(g, p) for g, p in zip(grads, jax.tree.leaves(call.params), strict=True)]
    end = [_from_real(s, like) for s, like in zip(state, jax.tree.leaves(call.state), strict=True)]
    return loss.astype(call.loss_dtype), unflatten_state(call, end), kept, unflatten_like(call.params, grads)


def _check_effects(call: Call) -> None:
    """That no result of side effects is read: a step and its pullback are two runs, which would read others."""
    for eqn in graph.trace(call.step, *shapes_of_one(call)).equations:
        if graph.has_side_effects(eqn) and graph.results(eqn):
            raise ValueError(
                f"model: found a step that reads results of side effects ({eqn.primitive.name}), expected one without: "
                "forward mode runs a step more than once; jax_bptt.bptt does not"
            )


class Rows(NamedTuple):
    """What the losses of a step are made of, of all examples."""

    before: Leaves
    after: Leaves  # and, behind the leaves of the state, what may be made but once
    x: PyTree
    targets: PyTree


def _transition(parts: SplitStep) -> Callable[[Leaves, Leaves, PyTree], Leaves]:
    def after(params: Leaves, before: Leaves, x: PyTree) -> Leaves:
        weights = parts.prepare(params)
        return parts.transition_with_effects(weights, before, parts.project(weights, jax.tree.leaves(x)))

    return after


def _forgotten(reset: jax.Array, kept: Any) -> Any:
    """What is kept of M, zero in examples that are reset; keys go on."""
    leaves, structure = jax.tree.flatten(kept)
    return jax.tree.unflatten(structure, combine(where(~reset, differentiable(leaves)), leaves))


def _credit(
    call: Call, parts: SplitStep, objective: Objective, params: Leaves, rows: Rows
) -> tuple[jax.Array, Leaves, Credit]:
    """The losses of a step, and the derivatives of their sum: of the params, by the readout alone, and of the state."""
    mask, parts = objective.mask, parts.where_counts(objective.reads)
    if objective.masked:
        assert mask is not None
        rows = instead_of_masked(mask, rows)

    def outputs(params: Leaves, some_after: Leaves, some_before: Leaves) -> tuple[Leaves, PyTree]:
        def read(params: Leaves, after: Leaves, before: Leaves, x: PyTree) -> PyTree:
            return parts.readout(parts.prepare(params), after, jax.tree.leaves(x), before)

        after, before = combine(some_after, rows.after), combine(some_before, rows.before)
        made = vmap_leading(read, (None, 0, 0, 0), call.batch)(params, after, before, rows.x)
        return only(objective.reads, differentiable(jax.tree.leaves(made))), made

    some = (
        only(parts.reads_after, differentiable(rows.after)),
        only(parts.reads_before[: len(rows.before)], differentiable(rows.before)),
    )
    _, pull, made = jax.vjp(outputs, params, *some, has_aux=True)
    losses, cotangents = objective.pull(made, rows.targets, mask, call.batch)
    params_bar, to_after, to_before = pull(cotangents)
    if objective.masked:  # all of them may be
        assert mask is not None
        params_bar = where((mask != 0).any(), params_bar)
        to_after, to_before = where(mask != 0, to_after), where(mask != 0, to_before)
    return losses, params_bar, Credit(to_after[: len(rows.before)], to_before)


def real_shapes(call: Call) -> tuple[Leaves, Leaves, PyTree]:
    """What the step of a call over real leaves is called with."""
    params, state, x = shapes_of_one(call)
    of_params, of_state = ([jax.eval_shape(to_real, a) for a in jax.tree.leaves(tree)] for tree in (params, state))
    return of_params, of_state, x


# Real coordinates: of a complex leaf real and imaginary part, along an axis of its own, the last.


def in_real_numbers(call: Call) -> Step:
    """The step of a call over flat real leaves of params and state."""
    shapes = call.params, call.state

    def step(params: Leaves, state: Leaves, x: PyTree) -> tuple[Leaves, PyTree]:
        whole = []
        for leaves, tree in zip((params, state), shapes, strict=True):
            like, structure = jax.tree.flatten(tree)
            pairs = zip(leaves, like, strict=True)
            whole.append(jax.tree.unflatten(structure, [_from_real(a, b) for a, b in pairs]))
        after, output = call.step(whole[0], whole[1], x)
        return [to_real(a) for a in jax.tree.leaves(after)], output

    return step


def to_real(leaf: jax.Array) -> jax.Array:
    """A leaf in its real coordinates."""
    return jnp.stack([leaf.real, leaf.imag], -1) if _is_complex(leaf) else leaf


def _from_real(leaf: jax.Array, like: Any) -> jax.Array:
    return jax.lax.complex(leaf[..., 0], leaf[..., 1]) if _is_complex(like) else leaf


def _gradient_from_real(bar: jax.Array, param: jax.Array) -> jax.Array:
    """The gradient of a param of that of its real coordinates: of a complex one, as JAX has it, ∂/∂Re − i ∂/∂Im."""
    made = jax.lax.complex(bar[..., 0], -bar[..., 1]) if _is_complex(param) else bar
    return made.astype(param.dtype)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
