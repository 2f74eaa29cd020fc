"""The transition's derivative, cut by what it depends on, as the step is by `split`.

    after, residuals = advance(weights, before, drive)                       in the forward loop
    fixed            = fix(weights)                                          once
    coefficients     = linearise(weights, before, drive, after, residuals)   all steps and examples at once
    delta            = pull(fixed, coefficients, delta)                      the only part inside the reverse loop
    weights_bar, drive_bar = transition_partials(…, deltas)                  all steps and examples at once

`residuals` are the least that has to be saved beside the states for no product of the transition to be computed again
(`save="dots"`): a minimum cut between the products and what the pullback reads. `coefficients` are those of the linear
recursion of δ: what happens to a cotangent between two products is one multiplication by a factor, however many
operations the derivatives are made of. For h_t = tanh(A h_{t−1} + u_t) there are no residuals, and the reverse loop
computes (δ_t ⊙ (1 − h_t²)) A.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jax_bptt.engine.leaves import Leaves, combine, differentiable, only, split_list
from jax_bptt.engine.step import graph
from jax_bptt.engine.step.blocks import Block, blocks_of, is_affine
from jax_bptt.engine.step.ends import Ends, reach
from jax_bptt.engine.step.equations import Atom, Var, has_side_effects, results, shape_of
from jax_bptt.engine.step.partition import Recomputation, derived_states, min_cut_residuals, recomputation
from jax_bptt.engine.step.recursion import Joint, cut_recursion, jacobian, trace_joint
from jax_bptt.engine.step.split import SplitStep
from jax_bptt.engine.step.structure import Alignment


class Pullback(NamedTuple):
    """The transition's derivative, of one example and over flat leaves; see the module's docstring."""

    #: The transition, together with what the pullback needs beside the states.
    advance: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    #: The same of weights, before, drive and after, where of after what may be made but once is taken as given.
    again: Callable[[Leaves, Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    #: The same with the step's side effects.
    advance_with_effects: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    fix: Callable[[Leaves], Leaves]
    linearise: Callable[[Leaves, Leaves, Leaves, Leaves, Leaves], Leaves]
    pull: Callable[[Leaves, Leaves, Leaves], Leaves]
    residuals: Leaves  # shapes of the residuals
    coefficients: Leaves  # shapes of what `linearise` makes
    #: Per state leaf: whether its value after the step follows from the residuals and the other leaves.
    derived: tuple[bool, ...]
    #: `after` of weights, before, drive, after and residuals, in which derived leaves of the states may be None.
    derive: Callable[[Leaves, Leaves, Leaves, Leaves, Leaves], Leaves]
    #: The residuals of weights, before, drive and after.
    complete: Callable[[Leaves, Leaves, Leaves, Leaves], Leaves]
    recomputation: Recomputation  # what it takes to compute the residuals again
    #: Ends as they come to: where credit gets to from there, and where it depends on what is wanted.
    reached: Callable[[Ends], Ends]
    ends: Ends | None  # those that it is of, as they come to; None of a step that is only run
    #: How each leaf of δ before the step depends on each after it, by leaf after, then by leaf before.
    jacobian: Callable[[], list[list[Alignment | None]]]
    blocks: list[Block] | None  # what is solved for all time at once; None of what is not
    is_affine: bool  # whether the transition is affine in the state, all leaves of which have a δ
    has_delta: tuple[bool, ...]  # per state leaf: whether credit passes it, from where it comes to where it is wanted
    has_drive_bar: tuple[bool, ...]  # per leaf of the drive: whether its cotangent is wanted


def split_pullback(
    transition: Callable[[Leaves, Leaves, Leaves], Leaves],
    weights: Leaves,
    before: Leaves,
    drive: Leaves,
    costly: tuple[bool, ...],
    ends: Ends | None = None,
    *,
    fixed: tuple[int, ...] = (),
    transpose_from: float = math.inf,
    earlier: Pullback | None = None,
) -> Pullback:
    """Cut the pullback of `transition` into what is fixed, per row, and per step.

    Args:
        transition: `SplitStep.transition_with_effects`.
        weights, before, drive: its arguments, or `jax.ShapeDtypeStruct`s of them, of one example.
        costly: `SplitStep.costly`.
        ends: None where credit may come from anywhere, and is wanted everywhere.
        fixed: `SplitStep.fixed`.
        transpose_from: as for `split_step`.
        earlier: one of the same transition, which it may come to.
    """
    ends = ends or Ends(*((True,) * len(of) for of in (before, before, weights, drive)))
    if earlier is not None and earlier.ends == earlier.reached(ends):
        return earlier
    # Every value of the transition, the new state first, so that each can be found again in the pullback's graph. What
    # runs is always made of the transition's own equations: those of its pullback have lost custom derivatives.
    forwards = graph.trace(transition, weights, before, drive)
    groups = split_list(forwards.inputs, len(weights), len(before), None)
    values = [*forwards.outputs, *groups[2], *(v for eqn in forwards.equations for v in results(eqn))]
    reached = functools.partial(reach, forwards, groups)
    credited, depends, _, _ = ends = reached(ends)
    pullback = functools.partial(_values_and_pullback, graph.extract_grouped(forwards, groups, values), ends)
    arguments, of_any = (weights, before, drive), only(depends, differentiable(before))
    joint = trace_joint(pullback, arguments, of_any)
    places = _places_of_residuals(joint, costly)  # of any credit: `scan` saves them before it knows of which
    of_saved = [values[i] for i in places]
    delta = only(credited, of_any)
    moving, structure = [i for i, leaf in enumerate(delta) if leaf is not None], jax.tree.structure(delta)
    if structure != jax.tree.structure(of_any):
        joint = trace_joint(pullback, arguments, delta)
    recursion = cut_recursion(joint, arguments, places, moving, transpose_from)
    fix, linearise, pull = recursion.parts
    cheap = itertools.compress(groups[2], map(operator.not_, costly))
    derived = derived_states(forwards, groups[1], [*groups[0], *cheap, *of_saved])
    return Pullback(
        advance=_with_residuals(forwards, groups, of_saved),
        again=_with_residuals(forwards, groups, of_saved, fixed=fixed),
        advance_with_effects=_with_residuals(forwards, groups, of_saved, effects=True),
        fix=fix,
        linearise=lambda weights, before, drive, after, saved: linearise(weights, [*after, *saved, *before, *drive]),
        pull=lambda fixed, rows, delta: jax.tree.unflatten(structure, pull(fixed, rows, jax.tree.leaves(delta))),
        residuals=list(map(shape_of, of_saved)),
        coefficients=recursion.coefficients,
        derived=derived,
        derive=_without(derived, forwards, groups, of_saved),
        complete=_after_first(graph.extract_grouped(forwards, [forwards.outputs, *groups], of_saved)),
        recomputation=recomputation(forwards, of_saved, itertools.compress(groups[1], derived)),
        reached=reached,
        ends=ends,
        jacobian=functools.partial(jacobian, recursion, moving, len(before)),
        blocks=blocks_of(recursion.whole, recursion.delta, recursion.whole.outputs, moving),
        is_affine=len(moving) == len(before)
        and not any(map(has_side_effects, forwards.equations))
        and is_affine(forwards, groups[1], forwards.outputs),
        has_delta=tuple(leaf is not None for leaf in delta),
        has_drive_bar=tuple(leaf is not None for leaf in only(ends.drive, differentiable(drive))),
    )


def _places_of_residuals(joint: Joint, costly: tuple[bool, ...]) -> list[int]:
    """Which of the values are to be saved."""
    _, S, D, _ = joint.inputs
    place = graph.first_index([joint.values], [range(len(joint.values))])
    states = [*S, *joint.values[: len(S)]]
    saved = min_cut_residuals(joint.whole, joint.level, states, itertools.compress(D, costly), place)
    return [place[v] for v in saved]


def _values_and_pullback(
    every_value: Callable, ends: Ends, weights: Leaves, before: Leaves, drive: Leaves, delta: Leaves
) -> tuple[Leaves, Leaves, tuple[Leaves, Leaves]]:
    """Every value of the transition, and the cotangents of the state before it, and of weights and drive."""

    def after(*moving):
        values = every_value(*map(combine, moving, (weights, before, drive)))
        return only(delta, values[: len(before)]), values

    trained, driving = only(ends.weights, differentiable(weights)), only(ends.drive, differentiable(drive))
    _, pull, values = jax.vjp(after, trained, only(delta, before), driving, has_aux=True)
    weights_bar, delta_before, drive_bar = pull(delta)
    return values, delta_before, (weights_bar, drive_bar)


def _with_residuals(
    forwards: graph.Graph,
    groups: list[list[Var]],
    residuals: list[Atom],
    effects: bool = False,
    fixed: tuple[int, ...] = (),
) -> Callable[..., tuple[Leaves, Leaves]]:
    """The state after the step, and the residuals, of weights, before, drive and the `fixed` leaves of after."""
    known = [[forwards.outputs[i] for i in fixed], *groups]
    run = graph.extract_grouped(forwards, known, [*forwards.outputs, *residuals], effects)

    def advance(weights: Leaves, before: Leaves, drive: Leaves, given: Sequence[Any] = ()) -> tuple[Leaves, Leaves]:
        values = run([given[i] for i in fixed], weights, before, drive)
        after, residuals = split_list(values, len(before), None)
        return after, residuals

    return advance


def _after_first(run: Callable[..., Leaves]) -> Callable[[Leaves, Leaves, Leaves, Leaves], Leaves]:
    """As `run`, with the state after the step, which it takes first, as the last argument."""
    return lambda weights, before, drive, after: run(after, weights, before, drive)


def only_forwards(parts: SplitStep, leaves: int) -> Pullback:
    """That of a step which is not differentiated: what is run forwards, and nothing else."""

    def without_residuals(run: Callable[[Leaves, Leaves, Leaves], Leaves]) -> Callable:
        return lambda weights, before, drive: (run(weights, before, drive), [])

    def nothing(*_: Any) -> Any:
        raise AssertionError("a step that is only run forwards was differentiated")

    return Pullback(
        advance=without_residuals(parts.transition),
        again=nothing,
        advance_with_effects=without_residuals(parts.transition_with_effects),
        fix=nothing,
        linearise=nothing,
        pull=nothing,
        residuals=[],
        coefficients=[],
        derived=(False,) * leaves,
        derive=nothing,
        complete=nothing,
        recomputation=Recomputation(0, 0),
        reached=lambda ends: ends,
        ends=None,
        jacobian=nothing,
        blocks=None,
        is_affine=False,
        has_delta=(False,) * leaves,
        has_drive_bar=(),
    )


def _without(
    derived: tuple[bool, ...], joint: graph.Graph, groups: list[list[Var]], saved: Leaves
) -> Callable[..., Leaves]:
    """The state after the step, of states without their derived leaves."""
    weights, before, drive = groups

    def others(leaves: Leaves) -> Leaves:
        return [leaf for leaf, is_derived in zip(leaves, derived, strict=True) if not is_derived]

    run = graph.extract_grouped(joint, [others(joint.outputs), saved, weights, others(before), drive], joint.outputs)
    return lambda weights, before, drive, after, saved: run(others(after), saved, weights, others(before), drive)


def transition_partials(
    advance: Callable,
    weights: Leaves,
    rows: tuple[Leaves, Leaves, Leaves, Leaves],
    deltas: Leaves,
    wrt: tuple[Sequence[Any], Sequence[Any]],
) -> tuple[Leaves, Leaves]:
    """Σ (∂⁺h_t/∂w)ᵀ δ_t over all rows, and (∂⁺h_t/∂u_t)ᵀ δ_t of each row, for the weights w and the drive u_t.

    Args:
        advance: `Pullback.again`, of all rows.
        weights: the transition's weights.
        rows: before, drive, after and residuals of all rows, leaves of `[W, B, …]`.
        deltas: δ of the state after each row's step, `[W, B, …]`.
        wrt: of the weights and of the drive what a cotangent is wanted of, None or False in place of others.
    """
    before, drive, after, residuals = rows

    def pulled(weights, before, drive, deltas, after):
        def after_of(some, drive_moving):
            new, residuals = advance(combine(some, weights), before, combine(drive_moving, drive), after)
            return only(deltas, new), (new, residuals)

        moving = (only(chosen, of) for chosen, of in zip(wrt, (weights, drive), strict=True))
        _, pull, known = jax.vjp(after_of, *moving, has_aux=True)
        return pull(deltas), known

    return graph.reuse(pulled, (weights, before, drive, deltas, after), (after, residuals))
