"""The split: one step of one sequence, cut by what its equations depend on.

A user writes `step(params, state, x) -> (state, output)` for one example. Its jaxpr is read, and every equation
goes to the earliest place where all that it depends on is known:

    weights = prepare(params)                        depends on params only: once
    drive   = project(weights, x)                    not on the state: all steps and examples at once
    after   = transition(weights, before, drive)     needed for the new state: the only part inside the step loops
    output  = readout(weights, after, x, before)     takes the new state as given: all steps and examples at once

Nothing is interpreted: each part is a jaxpr made of a subset of the equations. A step that cannot be cut is all
transition, and still right. The same reading cuts the transition's derivative, in `pullback`.

Inside the library, params, state, x and drive are flat lists of leaves, in the order of `jax.tree.leaves`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jax_bptt.jaxprs import divide, grouped, inputs, is_costly, levels, needed, trace
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
    #: Per leaf of the drive: whether it takes a product to compute it.
    costly: tuple[bool, ...]
    #: Per state leaf: whether the readout reads it after the step.
    reads_after: tuple[bool, ...]
    #: Per state leaf: whether the readout reads it as it was before the step.
    reads_before: tuple[bool, ...]


def split(step: Step, params: Any, state: Any, x: Any) -> Parts:
    """Cut `step` into its four parts.

    Args:
        step: `step(params, state, x) -> (state, output)` of one example.
        params, state, x: what the step is called with, or `jax.ShapeDtypeStruct`s of it, without time and batch axes.

    An output is taken as a function of the new state wherever the step computes it from the very value that it
    returns as the state. Equations with side effects stay in the transition, which keeps their order and number.
    """
    params_leaves, state_leaves, x_leaves = (jax.tree.leaves(tree) for tree in (params, state, x))
    closed, (_, output) = trace(step, params, state, x)
    output_structure = jax.tree.structure(output)
    jaxpr = closed.jaxpr
    P, S, X = divide(jaxpr.invars, len(params_leaves), len(state_leaves), len(x_leaves))
    S_new, Y = divide(jaxpr.outvars, len(state_leaves), len(jaxpr.outvars) - len(state_leaves))
    level = levels(jaxpr, [P, X, S])

    def at(variables, wanted: int) -> list[Var]:
        return [v for v in variables if level[v] == wanted]

    # What the readout takes as given: the values of the new state that are computed from input or state.
    given = [v for v in S_new if isinstance(v, Var) and level[v] > 0]

    for_transition = inputs(jaxpr, S_new, lambda v: level[v] in (0, 1) or v in S, effects=True)
    drive = at(for_transition, 1)
    for_drive = inputs(jaxpr, drive, lambda v: level[v] == 0 or v in X)
    for_readout = inputs(jaxpr, Y, lambda v: level[v] == 0 or v in given or v in S or v in X)
    weights = list(dict.fromkeys(at([*for_transition, *for_drive, *for_readout], 0)))

    readout = grouped(closed, [weights, S_new, X, S], Y)
    on_params = levels(jaxpr, [[*X, *S], P])  # of the weights: 1, or 0 for closed-over constants

    return Parts(
        prepare=grouped(closed, [P], weights),
        project=grouped(closed, [weights, X], drive),
        transition=grouped(closed, [weights, S, drive], S_new),
        transition_with_effects=grouped(closed, [weights, S, drive], S_new, effects=True),
        readout=lambda weights, after, x, before: jax.tree.unflatten(
            output_structure, readout(weights, after, x, before)
        ),
        from_params=tuple(on_params.get(v) == 1 for v in weights),
        costly=tuple(any(map(is_costly, needed(jaxpr, [v], lambda v: level[v] == 0)[0])) for v in drive),
        reads_after=tuple(v in given and v in for_readout and v not in S_new[:i] for i, v in enumerate(S_new)),
        reads_before=tuple(v in for_readout and v not in given for v in S),
    )


def differentiable(leaves: Iterable[Any]) -> Leaves:
    """The leaves, with None in place of those that have no derivative: integers, booleans, PRNG keys."""
    return [leaf if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.inexact) else None for leaf in leaves]


def combine(some: Leaves, leaves: Leaves) -> Leaves:
    """`leaves`, with those of `some` that are not None in their places."""
    return [leaf if new is None else new for new, leaf in zip(some, leaves, strict=True)]
