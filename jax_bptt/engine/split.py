"""The split: one step of one sequence, cut by what its equations depend on.

A user writes `step(params, state, x) -> (state, output)` for one example. It is traced, and every equation goes to the
earliest place where all that it depends on is known:

    weights = prepare(params)                        depends on params only: once
    drive   = project(weights, x)                    not on the state: all steps and examples at once
    after   = transition(weights, before, drive)     needed for the new state: the only part inside the step loops
    output  = readout(weights, after, x, before)     takes the new state as given: all steps and examples at once

Each part is made of a subset of the step's own equations. A step that cannot be cut is all transition, and still right.
The same reading cuts the transition's derivative, in `pullback`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jax_bptt.engine import graph
from jax_bptt.engine.leaves import Leaves, split_list
from jax_bptt.model import PyTree, Step


class SplitStep(NamedTuple):
    """The four parts of a step, each of one example and over flat leaves; see the module's docstring."""

    prepare: Callable[[Leaves], Leaves]
    project: Callable[[Leaves, Leaves], Leaves]
    transition: Callable[[Leaves, Leaves, Leaves], Leaves]
    #: The transition together with the step's side effects (`jax.debug.print`), for the one pass that shows them.
    transition_with_effects: Callable[[Leaves, Leaves, Leaves], Leaves]
    readout: Callable[[Leaves, Leaves, Leaves, Leaves], PyTree]  # returns the output as the user's pytree
    from_params: tuple[bool, ...]  # per weight: whether it depends on the params
    costly: tuple[bool, ...]  # per leaf of the drive: whether it takes a product to compute it
    reads_after: tuple[bool, ...]  # per state leaf: whether the readout reads it after the step
    reads_before: tuple[bool, ...]  # per state leaf: whether the readout reads it as it was before the step


def split_step(step: Step, params: PyTree, state: PyTree, x: PyTree, *, transpose: bool = False) -> SplitStep:
    """Cut `step` into its four parts.

    Args:
        step: `step(params, state, x) -> (state, output)` of one example.
        params, state, x: what the step is called with, or `jax.ShapeDtypeStruct`s of it, without time and batch axes.
        transpose: whether weights that stand before a vector in the transition are prepared transposed.

    An output is taken as a function of the new state wherever the step computes it from the very value that it
    returns as the state. Equations with side effects stay in the transition, which keeps their order and number.
    """
    whole = graph.trace(step, params, state, x)
    output_structure = whole.structure.children()[1]
    n_params, n_state = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
    P, S, X = split_list(whole.inputs, n_params, n_state, None)
    if transpose:
        level = graph.dependence(whole, [[*P, *X], S])
        loop, _ = graph.backward_slice(whole, whole.outputs[:n_state], lambda v: level[v] < 1, effects=True)
        in_loop = set(map(id, loop))
        whole = graph.retrace(whole, lambda eqn: graph.vector_first(eqn, transpose) if id(eqn) in in_loop else None)
        P, S, X = split_list(whole.inputs, n_params, n_state, None)
    S_new, Y = split_list(whole.outputs, n_state, None)
    level = graph.dependence(whole, [P, X, S])

    def at(variables: list[graph.Var], wanted: int) -> list[graph.Var]:
        return [v for v in variables if level[v] == wanted]

    # What the readout takes as given: the values of the new state that are computed from input or state.
    given = [v for v in graph.variables(S_new) if level[v] > 0]

    for_transition = graph.frontier(whole, S_new, lambda v: level[v] in (0, 1) or v in S, effects=True)
    drive = at(for_transition, 1)
    for_drive = graph.frontier(whole, drive, lambda v: level[v] == 0 or v in X)
    for_readout = graph.frontier(whole, Y, lambda v: level[v] == 0 or v in given or v in S or v in X)
    weights = list(dict.fromkeys(at([*for_transition, *for_drive, *for_readout], 0)))

    readout = graph.extract_grouped(whole, [weights, S_new, X, S], Y)
    on_params = graph.dependence(whole, [[*X, *S], P])  # of the weights: 1, or 0 for closed-over constants

    return SplitStep(
        prepare=graph.extract_grouped(whole, [P], weights),
        project=graph.extract_grouped(whole, [weights, X], drive),
        transition=graph.extract_grouped(whole, [weights, S, drive], S_new),
        transition_with_effects=graph.extract_grouped(whole, [weights, S, drive], S_new, effects=True),
        readout=lambda weights, after, x, before: jax.tree.unflatten(
            output_structure, readout(weights, after, x, before)
        ),
        from_params=tuple(on_params[v] == 1 for v in weights),
        costly=tuple(
            any(map(graph.is_costly, graph.backward_slice(whole, [v], lambda v: level[v] == 0)[0])) for v in drive
        ),
        reads_after=tuple(v in given and v in for_readout and v not in S_new[:i] for i, v in enumerate(S_new)),
        reads_before=tuple(v in for_readout and v not in given for v in S),
    )
