"""The split: one step of one sequence, cut by what its equations depend on.

A user writes `step(params, state, x) -> (state, output)` for one example. Its jaxpr is read, and every equation
goes to the earliest place where all that it depends on is known:

    weights = prepare(params)                        depends on params only: once
    drive   = project(weights, x)                    not on the state: all steps and examples at once
    after   = transition(weights, before, drive)     needed for the new state: the only part inside the step loops
    output  = readout(weights, after, x, before)     takes the new state as given: all steps and examples at once

The same reading cuts the transition's pullback (`split_pullback`), so that the reverse loop holds nothing that does
not depend on the cotangent. Nothing is interpreted: each part is a jaxpr made of a subset of the equations. A step
that cannot be cut is all transition, and still right.

Inside the library, params, state, x and drive are flat lists of leaves, in the order of `jax.tree.leaves`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from jax_bptt.model import Step

Leaves = list[Any]


class Parts(NamedTuple):
    """The four parts of a step, each of one example and over flat leaves; see the module's docstring."""

    prepare: Callable[[Leaves], Leaves]
    project: Callable[[Leaves, Leaves], Leaves]
    transition: Callable[[Leaves, Leaves, Leaves], Leaves]
    #: The transition together with the step's side effects (`jax.debug.print`), for the one pass that shows them.
    transition_with_effects: Callable[[Leaves, Leaves, Leaves], Leaves]
    #: Returns the output as the user's pytree.
    readout: Callable[[Leaves, Leaves, Leaves, Leaves], Any]
    #: Per weight: whether it depends on the params.
    from_params: tuple[bool, ...]
    #: Per state leaf: whether the readout reads it after the step.
    reads_after: tuple[bool, ...]
    #: Per state leaf: whether the readout reads it as it was before the step.
    reads_before: tuple[bool, ...]


class Pullback(NamedTuple):
    """The transition's pullback with respect to the state, cut by what it depends on; of one example.

    fixed     = prepare(weights)                     once
    residuals = linearise(weights, before, drive)    all steps and examples at once
    delta     = pull(fixed, residuals, delta)        the only part inside the reverse loop
    """

    prepare: Callable[[Leaves], Leaves]
    linearise: Callable[[Leaves, Leaves, Leaves], Leaves]
    pull: Callable[[Leaves, Leaves, Leaves], Leaves]


def split(step: Step, params: Any, state: Any, x: Any) -> Parts:
    """Cut `step` into its four parts.

    Args:
        step: `step(params, state, x) -> (state, output)` of one example.
        params, state, x: what the step is called with, or `jax.ShapeDtypeStruct`s of it, without time and batch axes.

    An output is taken as a function of the new state wherever the step computes it from the very value that it
    returns as the state. Equations with side effects stay in the transition, which keeps their order and number.
    """
    params_leaves, state_leaves, x_leaves = (jax.tree.leaves(tree) for tree in (params, state, x))
    closed, (_, output) = _trace(step, params, state, x)
    output_structure = jax.tree.structure(output)
    jaxpr = closed.jaxpr
    P, S, X = _divide(jaxpr.invars, len(params_leaves), len(state_leaves), len(x_leaves))
    S_new, Y = _divide(jaxpr.outvars, len(state_leaves), len(jaxpr.outvars) - len(state_leaves))
    level = _levels(jaxpr, [P, X, S])

    def at(variables, wanted: int) -> list[Var]:
        return [v for v in variables if level[v] == wanted]

    # The new state that the readout takes as given: the first place of each value in it.
    given = {v: i for i, v in reversed(list(enumerate(S_new))) if isinstance(v, Var) and level[v] > 0}
    after_read = list(given.values())
    x_read, before_read = ([i for i, v in enumerate(group) if v not in given] for group in (X, S))

    for_transition = _inputs(jaxpr, S_new, lambda v: level[v] in (0, 1) or v in S, effects=True)
    drive = at(for_transition, 1)
    for_drive = _inputs(jaxpr, drive, lambda v: level[v] == 0 or v in X)
    for_readout = _inputs(jaxpr, Y, lambda v: level[v] == 0 or v in given or v in S or v in X)
    weights = list(dict.fromkeys(at([*for_transition, *for_drive, *for_readout], 0)))

    prepare = _part(closed, P, weights)
    project = _part(closed, [*weights, *X], drive)
    transition = _part(closed, [*weights, *S, *drive], S_new)
    transition_with_effects = _part(closed, [*weights, *S, *drive], S_new, effects=True)
    readout = _part(closed, [*weights, *given, *(X[i] for i in x_read), *(S[i] for i in before_read)], Y)
    on_params = _levels(jaxpr, [[*X, *S], P])  # of the weights: 1, or 0 for closed-over constants

    return Parts(
        prepare=lambda params: prepare(*params),
        project=lambda weights, x: project(*weights, *x),
        transition=lambda weights, before, drive: transition(*weights, *before, *drive),
        transition_with_effects=lambda weights, before, drive: transition_with_effects(*weights, *before, *drive),
        readout=lambda weights, after, x, before: jax.tree.unflatten(
            output_structure,
            readout(
                *weights,
                *(after[i] for i in after_read),
                *(x[i] for i in x_read),
                *(before[i] for i in before_read),
            ),
        ),
        from_params=tuple(on_params.get(v) == 1 for v in weights),
        reads_after=tuple(any(given.get(v) == i for v in for_readout) for i in range(len(S))),
        reads_before=tuple(v in for_readout and v not in given for v in S),
    )


def split_pullback(transition: Callable, weights: Leaves, before: Leaves, drive: Leaves) -> Pullback:
    """Cut the pullback of `transition` with respect to the state into what is fixed, per row, and per step.

    Args:
        transition: `Parts.transition`.
        weights, before, drive: its arguments, or `jax.ShapeDtypeStruct`s of them, of one example.
    """

    def pullback(weights, before, drive, delta):
        _, pull = jax.vjp(
            lambda moving: differentiable(transition(weights, combine(moving, before), drive)), differentiable(before)
        )
        return pull(delta)[0]

    closed, delta_before = _trace(pullback, weights, before, drive, differentiable(before))
    structure = jax.tree.structure(delta_before)
    jaxpr = closed.jaxpr
    n = len(weights), len(before) + len(drive)
    W, R, D = _divide(jaxpr.invars, *n, len(jaxpr.invars) - sum(n))
    level = _levels(jaxpr, [W, R, D])

    for_pull = _inputs(jaxpr, jaxpr.outvars, lambda v: level[v] in (0, 1) or v in D)
    fixed = [v for v in for_pull if level[v] == 0]
    residuals = [v for v in for_pull if level[v] == 1]
    prepare = _part(closed, W, fixed)
    linearise = _part(closed, [*W, *R], residuals)
    pull = _part(closed, [*fixed, *residuals, *D], jaxpr.outvars)
    return Pullback(
        prepare=lambda weights: prepare(*weights),
        linearise=lambda weights, before, drive: linearise(*weights, *before, *drive),
        pull=lambda fixed, residuals, delta: jax.tree.unflatten(
            structure, pull(*fixed, *residuals, *jax.tree.leaves(delta))
        ),
    )


def differentiable(leaves: Iterable[Any]) -> Leaves:
    """The leaves, with None in place of those that have no derivative: integers, booleans, PRNG keys."""
    return [leaf if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.inexact) else None for leaf in leaves]


def combine(some: Leaves, leaves: Leaves) -> Leaves:
    """`leaves`, with those of `some` that are not None in their places."""
    return [leaf if new is None else new for new, leaf in zip(some, leaves, strict=True)]


# Reading jaxprs.


def _trace(function: Callable, *arguments: Any) -> tuple[ClosedJaxpr, Any]:
    """The jaxpr of `function` with nested `jit`s inlined, and the shapes of what it returns."""
    closed, shapes_out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    if any(_nested(eqn) for eqn in closed.jaxpr.eqns):
        shapes_in = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments)]
        closed = jax.make_jaxpr(lambda *values: _inlined(closed, *values))(*shapes_in)
    return closed, shapes_out


def _nested(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr that the equation only calls, if that is all it does."""
    if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call"):
        return eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return None


def _inlined(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Evaluate `closed` equation by equation, so that to trace this call is to inline what it calls."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def value(atom):
        # A literal becomes an array of its own type: a bare Python number would take the type of its neighbour.
        return np.asarray(atom.val, jnp.result_type(atom.aval)) if isinstance(atom, Literal) else values[atom]

    used = {v for eqn in jaxpr.eqns for v in _variables(eqn.invars)} | set(_variables(jaxpr.outvars))
    for eqn in jaxpr.eqns:
        inner = _nested(eqn)
        if inner is not None:
            values.update(zip(eqn.outvars, _inlined(inner, *map(value, eqn.invars)), strict=True))
        else:
            invars, outvars = list(dict.fromkeys(_variables(eqn.invars))), [v for v in eqn.outvars if v in used]
            results = _function(jaxpr, (), (), invars, outvars, [eqn])(*(values[v] for v in invars))
            values.update(zip(outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _levels(jaxpr: Jaxpr, groups: Sequence[Sequence[Var]]) -> dict[Var, int]:
    """For each variable the last group of inputs that it depends on; -1 where it depends on nothing.

    Closed-over arrays count as the first group. What an equation with side effects returns counts as the last, since
    such an equation is to run once per step, whatever its inputs are.
    """
    level = dict.fromkeys(jaxpr.constvars, 0) | {v: k for k, group in enumerate(groups) for v in group}

    def level_of(atom) -> int:
        if isinstance(atom, Literal):
            return 0 if np.ndim(atom.val) else -1
        return level[atom]

    for eqn in jaxpr.eqns:
        known = len(groups) - 1 if eqn.effects else max(map(level_of, eqn.invars), default=-1)
        level.update((v, known) for v in eqn.outvars)
    return level


def _needed(
    jaxpr: Jaxpr, outvars: Iterable[Any], known: Callable[[Var], bool], effects: bool = False
) -> tuple[list[JaxprEqn], list[Var]]:
    """The equations that compute `outvars` from what is known, and all variables that they meet."""
    met = dict.fromkeys(_variables(outvars))
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in met and not known(v) for v in eqn.outvars) or (effects and eqn.effects):
            eqns.append(eqn)
            met.update(dict.fromkeys(_variables(eqn.invars)))
    return eqns[::-1], list(met)


def _inputs(jaxpr: Jaxpr, outvars: Iterable[Any], known: Callable[[Var], bool], effects: bool = False) -> list[Var]:
    """The known variables from which `outvars` are computed."""
    return [v for v in _needed(jaxpr, outvars, known, effects)[1] if known(v)]


def _part(closed: ClosedJaxpr, invars: Sequence[Var], outvars: Sequence[Any], effects: bool = False) -> Callable:
    """The function from `invars` to `outvars`, made of the equations that it needs and no others."""
    known = {*invars, *closed.jaxpr.constvars}
    eqns, met = _needed(closed.jaxpr, outvars, known.__contains__, effects)
    constants = {
        v: c for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True) if v in met and v not in invars
    }
    return _function(closed.jaxpr, constants.keys(), constants.values(), invars, outvars, eqns)


def _function(jaxpr: Jaxpr, constvars, constants, invars, outvars, eqns) -> Callable[..., list[Any]]:
    part = jaxpr.replace(
        constvars=list(constvars),
        invars=list(invars),
        outvars=list(outvars),
        eqns=eqns,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(part, list(constants)))


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


def _divide(items: Sequence[Any], *sizes: int) -> list[list[Any]]:
    ends = np.cumsum(sizes).tolist()
    return [list(items[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
