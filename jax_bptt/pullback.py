"""The transition's derivative, cut by what it depends on, as the step is by `split`.

    after, kept = advance(weights, before, drive)                     in the forward loop
    fixed       = prepare(weights)                                    once
    residuals   = linearise(weights, before, drive, after, kept)      all steps and examples at once
    delta       = pull(fixed, residuals, delta)                       the only part inside the reverse loop
    weights_bar, drive_bar = immediate(…, deltas)                     all steps and examples at once

`kept` is the least that has to be saved beside the states for no product of the transition to be computed again
(`save="dots"`): a minimum cut between the products and what the pullback reads. And what happens to a cotangent
between two products is one multiplication by a factor that is computed for all steps at once, however many operations
the derivatives are made of: for h_t = tanh(A h_{t−1} + u_t) nothing is kept, and the reverse loop computes
(δ_t ⊙ (1 − h_t²)) A.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from jax_bptt.cotangents import evaluate_scaled
from jax_bptt.jaxprs import (
    at_first_place,
    divide,
    evaluate,
    given,
    grouped,
    inputs,
    levels,
    needed,
    product,
    results,
    shape_of,
    trace,
    variables,
)
from jax_bptt.keeping import implied_states, least_kept, worth_keeping
from jax_bptt.split import Leaves, combine, differentiable


class Pullback(NamedTuple):
    """The transition's derivative, of one example and over flat leaves; see the module's docstring."""

    #: The transition, together with what the pullback needs beside the states.
    advance: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    #: The weights as the forward loop reads them: transposed where it multiplies with the transpose.
    arrange: Callable[[Leaves], Leaves]
    #: `advance` of arranged weights.
    advance_arranged: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    #: The same with the step's side effects.
    advance_with_effects: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    prepare: Callable[[Leaves], Leaves]
    linearise: Callable[[Leaves, Leaves, Leaves, Leaves, Leaves], Leaves]
    pull: Callable[[Leaves, Leaves, Leaves], Leaves]
    #: Per state leaf: whether its value after the step follows from `kept` and the other leaves.
    implied: tuple[bool, ...]
    #: `after` of weights, before, drive, after and kept, in which implied leaves of the states may be None.
    imply: Callable[[Leaves, Leaves, Leaves, Leaves, Leaves], Leaves]
    #: Whether it takes less time to keep `kept` than to compute it again.
    worth_keeping: bool


def split_pullback(
    transition: Callable,
    weights: Leaves,
    before: Leaves,
    drive: Leaves,
    costly: tuple[bool, ...] | None = None,
    arranged: bool = False,
) -> Pullback:
    """Cut the pullback of `transition` into what is fixed, per row, and per step.

    Args:
        transition: `Parts.transition_with_effects`.
        weights, before, drive: its arguments, or `jax.ShapeDtypeStruct`s of them, of one example.
        costly: `Parts.costly`; where None, all of the drive is.
        arranged: whether weights are worth a transposed copy: where there are many examples beside them.
    """
    # Every value of the transition, the new state first, so that each can be found again in the pullback's jaxpr. What
    # runs is always made of the transition's own equations: those of its pullback have lost custom derivatives.
    forwards, _ = trace(transition, weights, before, drive)
    groups = _divide_by(forwards.jaxpr.invars, weights, before)
    values = [*forwards.jaxpr.outvars, *groups[2], *(v for eqn in forwards.jaxpr.eqns for v in results(eqn))]
    pullback = functools.partial(_values_and_pullback, grouped(forwards, groups, values))

    # The cotangents of weights and drive are there for what they read, which is kept for `immediate`.
    closed, (_, delta_before, _) = trace(pullback, weights, before, drive, differentiable(before))
    jaxpr, structure = closed.jaxpr, jax.tree.structure(delta_before)
    W, S, D, delta = _divide_by(jaxpr.invars, weights, before, drive)
    named, before_bar, _ = divide(jaxpr.outvars, len(values), structure.num_leaves, None)
    S_new = named[: len(S)]
    name = at_first_place([named], [range(len(named))])
    level = levels(jaxpr, [W, [*S, *D], delta])
    kept = least_kept(jaxpr, level, [*S, *S_new], [v for i, v in enumerate(D) if costly is None or costly[i]], name)

    def recursion(weights, after, kept_values, before, drive, delta_values):
        known = at_first_place([W, S_new, kept, S, D], [weights, after, kept_values, before, drive])
        return evaluate_scaled(closed, known, dict(zip(delta, delta_values, strict=True)), before_bar)

    prepare, linearise, pull = _cut(
        recursion, weights, (before, [*map(shape_of, kept)], before, drive), jax.tree.leaves(differentiable(before))
    )
    of_kept = [values[name[v]] for v in kept]
    outvars = [*forwards.jaxpr.outvars, *of_kept]
    cheap = [v for i, v in enumerate(groups[2]) if costly is not None and not costly[i]]
    implied = implied_states(forwards.jaxpr, groups[1], [*groups[0], *cheap, *of_kept])
    spared = [v for v, follows in zip(groups[1], implied, strict=True) if follows]
    turned = _turned(forwards.jaxpr, groups[0]) if arranged else set()
    return Pullback(
        advance=_in_two(grouped(forwards, groups, outvars)),
        arrange=lambda weights: [w.T if v in turned else w for v, w in zip(groups[0], weights, strict=True)],
        advance_arranged=_in_two(_with_turned(forwards, groups, outvars, turned)),
        advance_with_effects=_in_two(_with_turned(forwards, groups, outvars, turned, effects=True)),
        prepare=prepare,
        linearise=lambda weights, before, drive, after, kept: linearise(weights, [*after, *kept, *before, *drive]),
        pull=lambda fixed, residuals, delta: jax.tree.unflatten(
            structure, pull(fixed, residuals, jax.tree.leaves(delta))
        ),
        implied=implied,
        imply=_without(implied, forwards, groups, of_kept),
        worth_keeping=worth_keeping(forwards.jaxpr, kept, spared),
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


def _in_two(run: Callable[..., Leaves]) -> Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]:
    """The state after the step, and what else the function returns."""

    def advance(weights: Leaves, before: Leaves, drive: Leaves) -> tuple[Leaves, Leaves]:
        after, kept = divide(run(weights, before, drive), len(before), None)
        return after, kept

    return advance


def _without(
    implied: tuple[bool, ...], closed: ClosedJaxpr, groups: list[list[Var]], kept: list[Any]
) -> Callable[..., Leaves]:
    """The state after the step, of states without their implied leaves."""
    weights, before, drive = groups
    after = closed.jaxpr.outvars

    def others(leaves: list[Any]) -> list[Any]:
        return [leaf for leaf, follows in zip(leaves, implied, strict=True) if not follows]

    run = grouped(closed, [others(after), kept, weights, others(before), drive], after)
    return lambda weights, before, drive, after, kept: run(others(after), kept, weights, others(before), drive)


def _turned(jaxpr: Jaxpr, weights: Iterable[Var]) -> set[Var]:
    """The matrices A that are in nothing but products A h: in a batch these are products with Aᵀ.

    (A loop of products of [B, H] with a matrix of [H, G] took 0.75 to 0.95 of the time of those with the transpose of
    one of [G, H], on two CPU cores, for B from 32 to 128 and H from 128 to 512.)
    """

    def is_product(eqn: JaxprEqn, weight: Var) -> bool:
        if eqn.primitive.name != "dot_general" or len(set(variables(eqn.invars))) < 2:
            return False
        contracted, batched = eqn.params["dimension_numbers"]
        place = list(eqn.invars).index(weight)
        return tuple(contracted[place]) == (1,) and not batched[place]

    turned = set()
    for w in weights:
        uses = [is_product(eqn, w) for eqn in jaxpr.eqns if w in variables(eqn.invars)]
        if uses and all(uses) and len(shape_of(w).shape) == 2 and w not in variables(jaxpr.outvars):
            turned.add(w)
    return turned


def _with_turned(
    closed: ClosedJaxpr, groups: list[list[Var]], outvars: list[Any], turned: set[Var], effects: bool = False
) -> Callable[..., Leaves]:
    """As `grouped`, of weights of which some are transposed."""
    if not turned:
        return grouped(closed, groups, outvars, effects)
    jaxpr = closed.jaxpr
    eqns = needed(jaxpr, outvars, {v for group in groups for v in group}.__contains__, effects)[0]

    def run(*values: Leaves) -> Leaves:
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | at_first_place(groups, values)
        for eqn in eqns:
            operands = variables(eqn.invars)
            if turned.isdisjoint(operands):
                known |= evaluate(jaxpr, eqn, known)
                continue
            contracted, _ = eqn.params["dimension_numbers"]
            left, right = ((0,) if v in turned else axes for v, axes in zip(operands, contracted, strict=True))
            known[eqn.outvars[0]] = product(eqn, *(known[v] for v in operands), axes=(left, right))
        return [known[v] if isinstance(v, Var) else jnp.asarray(v.val, jnp.result_type(v.aval)) for v in outvars]

    return run


def immediate(
    advance: Callable, weights: Leaves, rows: tuple[Leaves, Leaves, Leaves, Leaves], deltas: Leaves, wanted: Leaves
) -> tuple[Leaves, Leaves]:
    """Σ (∂⁺h_t/∂w)ᵀ δ_t over all rows, and (∂⁺h_t/∂u_t)ᵀ δ_t of each row, for the weights w and the drive u_t.

    Args:
        advance: `Pullback.advance`, of all rows.
        weights: the transition's weights.
        rows: before, drive, after and kept of all rows, leaves of `[W, B, …]`.
        deltas: δ of the state after each row's step, `[W, B, …]`.
        wanted: the weights whose gradient is wanted, None in place of others.
    """
    before, drive, after, kept = rows

    def pulled(weights, before, drive, deltas):
        def after_of(some, drive_moving):
            arguments = combine(some, weights), before, combine(drive_moving, drive)
            new, kept = advance(*arguments)
            return differentiable(new), (new, kept)

        some = [None if w is None else value for w, value in zip(wanted, weights, strict=True)]
        _, pull, known = jax.vjp(after_of, some, differentiable(drive), has_aux=True)
        return pull(deltas), known

    return given(pulled, (weights, before, drive, deltas), (after, kept))


def _cut(function: Callable, weights: Leaves, rows: tuple[Leaves, ...], delta: Leaves) -> tuple[Callable, ...]:
    """A function of weights, values of a row and cotangents, cut by what its equations depend on."""
    closed, _ = trace(function, weights, *rows, delta)
    jaxpr = closed.jaxpr
    W, *R, D = _divide_by(jaxpr.invars, weights, *rows)
    R = [v for group in R for v in group]
    level = levels(jaxpr, [W, R, D])
    for_pull = inputs(jaxpr, jaxpr.outvars, lambda v: level[v] in (0, 1) or v in D)
    fixed, residuals = ([v for v in for_pull if level[v] == k] for k in (0, 1))
    return (
        grouped(closed, [W], fixed),
        grouped(closed, [W, R], residuals),
        grouped(closed, [fixed, residuals, D], jaxpr.outvars),
    )


def _divide_by(items: list[Any], *trees: Leaves) -> list[list[Any]]:
    return divide(items, *map(len, trees), None)
