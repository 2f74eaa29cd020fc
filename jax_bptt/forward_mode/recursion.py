"""The loop of forward mode: the gradient of each step's loss as soon as the step is read, and nothing kept of the past.

    M_t     = ∂h_t/∂θ = (∂h_t/∂h_{t−1}) M_{t−1} + ∂⁺h_t/∂θ
    ∂ℓ_t/∂θ = ∂⁺ℓ_t/∂θ + (∂ℓ_t/∂h_t)ᵀ M_t                  and (∂⁺ℓ_t/∂h_{t−1})ᵀ M_{t−1}, where the readout reads that

What stands for M, `kept`, is for `influence` and `rank_one` to say: a `CarryOver` takes it over a step, and tells what
the credit of the step's losses makes of it.

Inside, complex leaves are pairs of real ones (`real_numbers`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.options import describe
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call, shapes_of_one, vary_data
from jax_bptt.engine.flatten import put_back, reset_to_of, unflatten_like, unflatten_state
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
from jax_bptt.engine.objective import Objective, instead_of_masked, objective_of
from jax_bptt.engine.solvers.sequential import scan_steps
from jax_bptt.engine.step import graph
from jax_bptt.engine.step.equations import has_side_effects, results
from jax_bptt.engine.step.split import SplitStep, split_step
from jax_bptt.engine.windows import vmap_leading
from jax_bptt.forward_mode.real_numbers import (
    Step,
    from_real,
    gradient_from_real,
    in_real_numbers,
    real_shapes,
    to_real,
)
from jax_bptt.model import Loss, PyTree, Reduction
from jax_bptt.model import Step as UserStep


class Credit(NamedTuple):
    """Derivatives of a step's losses by what its readout reads of the state, leaves of `[B, …]`; None is zero."""

    to_after: Leaves
    to_before: Leaves


CarryOver = Callable[[Step, Leaves, Leaves, PyTree, Any, Credit], tuple[Any, Leaves]]
"""`(step, params, before, x, kept, credit) -> (kept, gradient)`: what is kept after a step, what credit makes of it."""


def gradient_of(
    step: UserStep,
    loss: Loss,
    reduction: Reduction,
    kind: type[Any],
    begin: Callable[[Call, Any], tuple[Any, CarryOver]],
) -> Callable[..., tuple[tuple[jax.Array, Any], PyTree]]:
    """The gradient function of a pair.

    Args:
        kind: of the carry, a NamedTuple of the state and of what is kept.
        begin: of a checked call and a carry, what is kept before the first step, and how it is carried over one.
    """

    def gradient(
        params: PyTree,
        state: Any,
        xs: PyTree = None,
        targets: PyTree = None,
        mask: Any = None,
        reset: Any = None,
        reset_state: PyTree = None,
        length: int | None = None,
    ) -> tuple[tuple[jax.Array, Any], PyTree]:
        if not isinstance(state, kind):
            raise TypeError(f"carry: found {describe(state)}, expected what init of the same pair returns")
        arguments = Arguments(params, state.state, xs, targets, mask, reset, reset_state, length)
        call = check_call(step, loss, arguments, argnums=(0,))
        kept, carry_over = begin(call, state)
        objective = objective_of(call, reduction, schedule.exact(call.steps))
        value, end, kept, grads = over_time(call, objective, kept, carry_over)
        return (value, kind(end, *kept)), grads

    return gradient


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
    grads = [gradient_from_real(g, p) for g, p in zip(grads, jax.tree.leaves(call.params), strict=True)]
    end = [from_real(s, like) for s, like in zip(state, jax.tree.leaves(call.state), strict=True)]
    return loss.astype(call.loss_dtype), unflatten_state(call, end), kept, unflatten_like(call.params, grads)


def _check_effects(call: Call) -> None:
    """That no result of side effects is read: a step and its pullback are two runs, which would read others."""
    for eqn in graph.trace(call.step, *shapes_of_one(call)).equations:
        if has_side_effects(eqn) and results(eqn):
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


def pullback_of(
    step: Step, params: Leaves, before: Leaves, x: PyTree
) -> tuple[Leaves, Callable[[Leaves], tuple[Leaves, Leaves]]]:
    """The state after the step of an example, and `δ -> (params_bar, before_bar)`; None of what has no derivative."""
    moving = differentiable(before)

    def after(some_params: Leaves, some: Leaves) -> Leaves:
        return only(moving, step(some_params, combine(some, before), x)[0])

    return jax.vjp(after, params, moving)


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
