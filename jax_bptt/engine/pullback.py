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
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax

from jax_bptt.engine import graph
from jax_bptt.engine.factored import Cotangent, evaluate_factored
from jax_bptt.engine.leaves import Leaves, combine, differentiable, only, split_list
from jax_bptt.engine.partition import Recomputation, derived_states, min_cut_residuals, recomputation
from jax_bptt.engine.split import SplitStep


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
    #: Per state leaf: whether its value after the step follows from the residuals and the other leaves.
    derived: tuple[bool, ...]
    #: `after` of weights, before, drive, after and residuals, in which derived leaves of the states may be None.
    derive: Callable[[Leaves, Leaves, Leaves, Leaves, Leaves], Leaves]
    #: The residuals of weights, before, drive and after.
    complete: Callable[[Leaves, Leaves, Leaves, Leaves], Leaves]
    recomputation: Recomputation  # what it takes to compute the residuals again
    #: Per leaf of δ before the step: the leaves of δ after it that it is elementwise in; None where it is not.
    elementwise: tuple[Collection[int] | None, ...]


def split_pullback(
    transition: Callable[[Leaves, Leaves, Leaves], Leaves],
    weights: Leaves,
    before: Leaves,
    drive: Leaves,
    costly: tuple[bool, ...],
    *,
    fixed: tuple[int, ...] = (),
    transpose_from: float = math.inf,
) -> Pullback:
    """Cut the pullback of `transition` into what is fixed, per row, and per step.

    Args:
        transition: `SplitStep.transition_with_effects`.
        weights, before, drive: its arguments, or `jax.ShapeDtypeStruct`s of them, of one example.
        costly: `SplitStep.costly`.
        fixed: `SplitStep.fixed`.
        transpose_from: as for `split_step`.
    """
    # Every value of the transition, the new state first, so that each can be found again in the pullback's graph. What
    # runs is always made of the transition's own equations: those of its pullback have lost custom derivatives.
    forwards = graph.trace(transition, weights, before, drive)
    groups = _split_by(forwards.inputs, weights, before)
    values = [*forwards.outputs, *groups[2], *(v for eqn in forwards.equations for v in graph.results(eqn))]
    pullback = functools.partial(_values_and_pullback, graph.extract_grouped(forwards, groups, values))

    # The cotangents of weights and drive are there for what they read, which is saved for `transition_partials`.
    joint = graph.trace(pullback, weights, before, drive, differentiable(before))
    structure = joint.structure.children()[1]
    W, S, D, delta = _split_by(joint.inputs, weights, before, drive)
    named, before_bar, _ = split_list(joint.outputs, len(values), structure.num_leaves, None)
    S_new = named[: len(S)]
    name = graph.first_index([named], [range(len(named))])
    level = graph.dependence(joint, [W, [*S, *D], delta], once=1)
    is_weight = functools.partial(graph.has_level, level, 0)
    saved = min_cut_residuals(joint, level, [*S, *S_new], itertools.compress(D, costly), name)

    found: list[frozenset[int] | None] = []

    def recursion(weights: Leaves, rows: Leaves, delta_values: Leaves) -> Leaves:
        known = graph.first_index([W, [*S_new, *saved, *S, *D]], [weights, rows])
        of_delta = dict(zip(delta, delta_values, strict=True))
        terms = evaluate_factored(joint, known, of_delta, before_bar, is_weight, transpose_from)
        found[:] = [c.leaves() if isinstance(c, Cotangent) else frozenset() for c in terms]
        return [c.value() if isinstance(c, Cotangent) else c for c in terms]

    exact = [i for i, leaf in enumerate(differentiable(before)) if leaf is not None]
    known = [*before, *map(graph.shape_of, saved), *before, *drive]
    fix, linearise, pull = _cut(recursion, weights, known, [before[i] for i in exact])
    of_saved = [values[name[v]] for v in saved]
    cheap = itertools.compress(groups[2], map(operator.not_, costly))
    derived = derived_states(forwards, groups[1], [*groups[0], *cheap, *of_saved])
    elementwise = {i: of and tuple(exact[j] for j in sorted(of)) for i, of in zip(exact, found, strict=True)}
    return Pullback(
        advance=_with_residuals(forwards, groups, of_saved),
        again=_with_residuals(forwards, groups, of_saved, fixed=fixed),
        advance_with_effects=_with_residuals(forwards, groups, of_saved, effects=True),
        fix=fix,
        linearise=lambda weights, before, drive, after, saved: linearise(weights, [*after, *saved, *before, *drive]),
        pull=lambda fixed, rows, delta: jax.tree.unflatten(structure, pull(fixed, rows, jax.tree.leaves(delta))),
        residuals=[graph.shape_of(v) for v in saved],
        derived=derived,
        derive=_without(derived, forwards, groups, of_saved),
        complete=_after_first(graph.extract_grouped(forwards, [forwards.outputs, *groups], of_saved)),
        recomputation=recomputation(forwards, saved, itertools.compress(groups[1], derived)),
        elementwise=tuple(elementwise.get(i, ()) for i in range(len(before))),
    )


def _values_and_pullback(
    every_value: Callable, weights: Leaves, before: Leaves, drive: Leaves, delta: Leaves
) -> tuple[Leaves, Leaves, tuple[Leaves, Leaves]]:
    """Every value of the transition, and the cotangents of the state before it, and of weights and drive."""

    def after(*moving):
        values = every_value(*map(combine, moving, (weights, before, drive)))
        return differentiable(values[: len(before)]), values

    _, pull, values = jax.vjp(after, *map(differentiable, (weights, before, drive)), has_aux=True)
    weights_bar, delta_before, drive_bar = pull(delta)
    return values, delta_before, (weights_bar, drive_bar)


def _with_residuals(
    forwards: graph.Graph,
    groups: list[list[graph.Var]],
    residuals: list[graph.Atom],
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

    def nothing(*_: Leaves) -> Any:
        raise AssertionError("a step that is only run forwards was differentiated")

    return Pullback(
        advance=without_residuals(parts.transition),
        again=nothing,
        advance_with_effects=without_residuals(parts.transition_with_effects),
        fix=nothing,
        linearise=nothing,
        pull=nothing,
        residuals=[],
        derived=(False,) * leaves,
        derive=nothing,
        complete=nothing,
        recomputation=Recomputation(0, 0),
        elementwise=(None,) * leaves,
    )


def _without(
    derived: tuple[bool, ...], joint: graph.Graph, groups: list[list[graph.Var]], saved: Leaves
) -> Callable[..., Leaves]:
    """The state after the step, of states without their derived leaves."""
    weights, before, drive = groups

    def others(leaves: Leaves) -> Leaves:
        return [leaf for leaf, is_derived in zip(leaves, derived, strict=True) if not is_derived]

    run = graph.extract_grouped(joint, [others(joint.outputs), saved, weights, others(before), drive], joint.outputs)
    return lambda weights, before, drive, after, saved: run(others(after), saved, weights, others(before), drive)


def transition_partials(
    advance: Callable, weights: Leaves, rows: tuple[Leaves, Leaves, Leaves, Leaves], deltas: Leaves, wrt: Leaves
) -> tuple[Leaves, Leaves]:
    """Σ (∂⁺h_t/∂w)ᵀ δ_t over all rows, and (∂⁺h_t/∂u_t)ᵀ δ_t of each row, for the weights w and the drive u_t.

    Args:
        advance: `Pullback.again`, of all rows.
        weights: the transition's weights.
        rows: before, drive, after and residuals of all rows, leaves of `[W, B, …]`.
        deltas: δ of the state after each row's step, `[W, B, …]`.
        wrt: the weights whose gradient is wanted, None in place of others.
    """
    before, drive, after, residuals = rows

    def pulled(weights, before, drive, deltas, after):
        def after_of(some, drive_moving):
            new, residuals = advance(combine(some, weights), before, combine(drive_moving, drive), after)
            return differentiable(new), (new, residuals)

        _, pull, known = jax.vjp(after_of, only(wrt, weights), differentiable(drive), has_aux=True)
        return pull(deltas), known

    return graph.reuse(pulled, (weights, before, drive, deltas, after), (after, residuals))


def _cut(function: Callable, weights: Leaves, rows: Leaves, delta: Leaves) -> tuple[Callable, Callable, Callable]:
    """A function of weights, values of a row and cotangents, cut by what its equations depend on."""
    joint = graph.trace(function, weights, rows, delta)
    W, R, D = _split_by(joint.inputs, weights, rows)
    level = graph.dependence(joint, [W, R, D])
    for_pull = graph.frontier(joint, joint.outputs, lambda v: level[v] in (0, 1) or v in D)
    fixed, coefficients = ([v for v in for_pull if level[v] == k] for k in (0, 1))
    return (
        graph.extract_grouped(joint, [W], fixed),
        graph.extract_grouped(joint, [W, R], coefficients),
        graph.extract_grouped(joint, [fixed, coefficients, D], joint.outputs),
    )


def _split_by(items: list[graph.Var], *trees: Leaves) -> list[list[graph.Var]]:
    return split_list(items, *map(len, trees), None)
