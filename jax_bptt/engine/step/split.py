"""The split: one step of one sequence, cut by what its equations depend on.

A user writes `step(params, state, x) -> (state, output)` for one example. It is traced, and every equation goes to the
earliest place where all that it depends on is known:

    weights = prepare(params)                        depends on params only: once
    drive   = project(weights, x)                    not on the state: all steps and examples at once
    after   = transition(weights, before, drive)     needed for the new state: the only part inside the step loops
    output  = readout(weights, after, x, before)     takes the new state as given: all steps and examples at once

Each part is made of a subset of the step's own equations. A step that cannot be cut is all transition, and still right.
What may be made but once, draws of random numbers for a whole batch and results of side effects, is made in the loop,
and kept as if it were more leaves of the state.
The same reading cuts the transition's derivative, in `pullback`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from jax_bptt.engine.leaves import Leaves, split_list
from jax_bptt.engine.step import graph, primitives
from jax_bptt.engine.step.equations import (
    Atom,
    Equation,
    Var,
    count,
    keeps_shape,
    makes_once,
    results,
    shape_of,
    variables,
)
from jax_bptt.engine.step.layout import transpose_late
from jax_bptt.engine.step.products import rows_first, rows_of
from jax_bptt.model import PyTree, Step


class SplitStep(NamedTuple):
    """The four parts of a step, each of one example and over flat leaves; see the module's docstring."""

    prepare: Callable[[Leaves], Leaves]
    project: Callable[[Leaves, Leaves], Leaves]
    transition: Callable[[Leaves, Leaves, Leaves], Leaves]
    #: The transition together with the step's side effects (`jax.debug.print`), for the one pass that shows them.
    transition_with_effects: Callable[[Leaves, Leaves, Leaves], Leaves]
    readout: Callable[[Leaves, Leaves, Leaves, Leaves], PyTree]  # returns the output as the user's pytree
    once: Leaves  # shapes of the leaves that follow those of the state: what may be made but once
    fixed: tuple[int, ...]  # the places of leaves that may be made but once and have no derivative
    one_by_one: bool  # whether rows are to be computed step by step, since something is not to be mapped over
    opaque: bool  # whether the new state takes something costly that is no product
    opaque_readout: bool  # whether any output does
    equations: int  # how many the step has, those inside of others included
    rows: int  # how many rows a step of one example multiplies with a weight: more than 1 if it is written for a batch
    from_params: tuple[frozenset[int], ...]  # per weight: the leaves of the params that it depends on
    #: Per leaf of the drive: the leaves that it depends on, of the weights and, counted on behind them, of x.
    drive_from: tuple[frozenset[int], ...]
    costly: tuple[bool, ...]  # per leaf of the drive: whether it takes a product to compute it
    read_by: tuple[frozenset[tuple[bool, int]], ...]  # per leaf of the output, of which state leaves: (after, place)
    reads_after: tuple[bool, ...]  # per state leaf: whether the outputs that count read it after the step
    reads_before: tuple[bool, ...]  # per state leaf: whether they read it as it was before the step

    def where_counts(self, reads: Sequence[bool] | None) -> "SplitStep":
        """The same where of the leaves of the output these count, something that is differentiated depending on them.

        None: all do.
        """
        counted = self.read_by if reads is None else itertools.compress(self.read_by, reads)
        read, places = frozenset[tuple[bool, int]]().union(*counted), range(len(self.reads_after))
        before, after = (tuple((is_after, i) in read for i in places) for is_after in (False, True))
        return self._replace(reads_after=after, reads_before=before)


def split_step(step: Step, params: PyTree, state: PyTree, x: PyTree, *, transpose_from: float = math.inf) -> SplitStep:
    """Cut `step` into its four parts.

    Args:
        step: `step(params, state, x) -> (state, output)` of one example.
        params, state, x: what the step is called with, or `jax.ShapeDtypeStruct`s of it, without time and batch axes.
        transpose_from: rows from which on weights that stand before them in the transition are prepared transposed.

    An output is taken as a function of the new state wherever the step computes it from the very value that it
    returns as the state. Equations with side effects stay in the transition, which keeps their order and number.
    """
    whole = graph.trace(step, params, state, x)
    output_structure = whole.structure.children()[1]
    n_params, n_state = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
    whole, rows = _rows_first(whole, n_params, n_state, transpose_from)
    whole = graph.without_repeats(whole)
    P, S, X = split_list(whole.inputs, n_params, n_state, None)
    S_new, Y = split_list(whole.outputs, n_state, None)
    level = graph.dependence(whole, [P, X, S])
    once = _made_once(whole, level, S_new)
    S_new = [*S_new, *once]

    def is_opaque(outputs: Sequence[Atom]) -> bool:
        return any(map(primitives.is_opaque, graph.backward_slice(whole, outputs, lambda v: level[v] <= 0)[0]))

    def at(among: list[Var], wanted: int) -> list[Var]:
        return [v for v in among if level[v] == wanted]

    # What the readout takes as given: the values of the new state that are computed from input or state.
    given = [v for v in variables(S_new) if level[v] > 0]

    for_transition = graph.frontier(whole, S_new, lambda v: level[v] in (0, 1) or v in S, effects=True)
    drive = at(for_transition, 1)
    for_drive = graph.frontier(whole, drive, lambda v: level[v] == 0 or v in X)
    is_given = {*given, *S, *X, *at(list(level), 0)}.__contains__
    for_readout = graph.frontier(whole, Y, is_given)
    weights = list(dict.fromkeys(at([*for_transition, *for_drive, *for_readout], 0)))

    readout = graph.extract_grouped(whole, [weights, S_new, X, S], Y)

    return SplitStep(
        prepare=graph.extract_grouped(whole, [P], weights),
        project=graph.extract_grouped(whole, [weights, X], drive),
        transition=graph.extract_grouped(whole, [weights, S, drive], S_new),
        transition_with_effects=graph.extract_grouped(whole, [weights, S, drive], S_new, effects=True),
        readout=lambda weights, after, x, before: jax.tree.unflatten(
            output_structure, readout(weights, after, x, before)
        ),
        once=list(map(shape_of, once)),
        fixed=tuple(i for i, v in enumerate(S_new) if graph.is_fixed(whole, v)),
        one_by_one=any(map(keeps_shape, whole.equations)),
        opaque=is_opaque(S_new),
        opaque_readout=is_opaque(Y),
        equations=count(whole.equations),
        rows=rows,
        from_params=tuple(map(graph.origins(whole, P).__getitem__, weights)),
        drive_from=tuple(map(graph.origins(whole, [*weights, *X]).__getitem__, drive)),
        costly=tuple(map(_made_by_products(whole, level).__contains__, drive)),
        read_by=_read_by(whole, S, S_new, given),
        reads_after=(False,) * len(S_new),
        reads_before=(False,) * len(S_new),
    ).where_counts(None)


def _read_by(
    whole: graph.Graph, before: list[Var], after: list[Atom], given: list[Var]
) -> tuple[frozenset[tuple[bool, int]], ...]:
    """Of each leaf of the output, which leaves of the state it reads, as they are after the step or before it."""
    states = {v: (False, i) for i, v in enumerate(before) if v not in given}
    states |= {v: (True, i) for i, v in reversed(list(enumerate(after))) if isinstance(v, Var) and v in given}
    read, places = graph.origins(whole, list(states)), list(states.values())
    outputs = whole.outputs[len(before) :]
    return tuple(frozenset(places[i] for v in variables([y]) for i in read[v]) for y in outputs)


def _made_by_products(whole: graph.Graph, level: Mapping[Var, int]) -> set[Var]:
    """What depends on more than params, and takes something costly to compute."""
    made = set[Var]()
    for eqn in whole.equations:
        moving = [v for v in eqn.outvars if level[v] > 0]
        if moving and (primitives.is_costly(eqn) or not made.isdisjoint(variables(eqn.invars))):
            made.update(moving)
    return made


def _rows_first(whole: graph.Graph, n_params: int, n_state: int, transpose_from: float) -> tuple[graph.Graph, int]:
    """The graph of a step, rows first in products with weights, and their number."""
    P, S, X = split_list(whole.inputs, n_params, n_state, None)
    level = graph.dependence(whole, [P, X, S])
    loop, _ = graph.backward_slice(whole, whole.outputs[:n_state], lambda v: level[v] < 2, effects=True)
    in_loop = set(map(id, loop))

    is_weight = functools.partial(graph.has_level, level, 0)

    def rewrite(eqn: Equation) -> Callable | None:
        return rows_first(eqn, is_weight, transpose_from if id(eqn) in in_loop else math.inf)

    rows = max((rows_of(eqn, is_weight) for eqn in whole.equations), default=1)
    if not any(map(rewrite, whole.equations)):
        return whole, rows
    whole = graph.retrace(whole, rewrite)
    level = graph.dependence(whole, split_list(whole.inputs, n_params, None))
    return transpose_late(whole, lambda atom: not graph.has_level(level, 1, atom)), rows


def _made_once(whole: graph.Graph, level: Mapping[Var, int], after: list[Atom]) -> list[Var]:
    """What may be made but once and is read by something else, but for what is a leaf of the state after the step."""
    makes = [eqn for eqn in whole.equations if makes_once(eqn) and any(level[v] > 0 for v in results(eqn))]
    made = {v for eqn in makes for v in results(eqn)} - set(variables(after))
    if not made:
        return []
    others = [eqn for eqn in whole.equations if all(eqn is not once for once in makes)]
    read = {*variables(whole.outputs), *(v for eqn in others for v in variables(eqn.invars))}
    return [v for eqn in makes for v in results(eqn) if v in made and v in read]
