"""The recursion of δ, cut out of the graph of a transition and its pullback by what its equations depend on.

fixed        = fix(weights)                  once
coefficients = linearise(weights, rows)      all steps and examples at once
delta        = pull(fixed, coefficients, δ)  the only part inside the reverse loop
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jax_bptt.engine.leaves import Leaves, split_list
from jax_bptt.engine.step import graph
from jax_bptt.engine.step.equations import Atom, Var, shape_of
from jax_bptt.engine.step.factored import Cotangent, evaluate_factored
from jax_bptt.engine.step.structure import Alignment, alignments


class Recursion(NamedTuple):
    """The recursion of δ, cut by what its equations depend on."""

    parts: tuple[Callable, Callable, Callable]  # what is fixed, per row, and per step
    coefficients: Leaves  # shapes of what is made per row
    whole: graph.Graph  # of all of it
    delta: list[Var]  # δ after the step, among its inputs


class Joint(NamedTuple):
    """The graph of a transition's values and of its pullback."""

    whole: graph.Graph
    inputs: list[list[Var]]  # weights, before, drive, δ
    level: dict[Var, int]  # 0 of weights, 1 of rows, 2 of cotangents
    values: list[Atom]  # the state after the step first
    before_bar: list[Atom]


def trace_joint(pullback: Callable, arguments: tuple[Leaves, Leaves, Leaves], delta: Leaves) -> Joint:
    """The joint graph of these leaves of δ; cotangents of weights and drive are there for what their making reads."""
    joint = graph.trace(pullback, *arguments, delta)
    n_values, n_before, _ = (of.num_leaves for of in joint.structure.children())
    values, before_bar, _ = split_list(joint.outputs, n_values, n_before, None)
    W, S, D, of_delta = _split_by(joint.inputs, *arguments)
    level = graph.dependence(joint, [W, [*S, *D], of_delta], once=1)
    return Joint(joint, [W, S, D, of_delta], level, values, before_bar)


def cut_recursion(
    joint: Joint, arguments: tuple[Leaves, Leaves, Leaves], saved: list[int], moving: list[int], transpose_from: float
) -> Recursion:
    """The recursion of δ.

    Args:
        saved: the places of the residuals among the values.
        moving: the places of the leaves that have a δ.
    """
    (W, S, D, of_delta), (weights, before, drive) = joint.inputs, arguments
    of_rows = [*joint.values[: len(S)], *(joint.values[i] for i in saved), *S, *D]
    is_weight = functools.partial(graph.has_level, joint.level, 0)

    def recursion(weights: Leaves, rows: Leaves, delta: Leaves) -> Leaves:
        known = graph.first_index([W, of_rows], [weights, rows])
        cotangents = dict(zip(of_delta, delta, strict=True))
        terms = evaluate_factored(joint.whole, known, cotangents, joint.before_bar, is_weight, transpose_from)
        return [c.value() if isinstance(c, Cotangent) else c for c in terms]

    shapes = [*before, *(shape_of(joint.values[i]) for i in saved), *before, *drive]
    return _cut(recursion, weights, shapes, [before[i] for i in moving])


def _cut(function: Callable, weights: Leaves, rows: Leaves, delta: Leaves) -> Recursion:
    """A function of weights, values of a row and cotangents, cut."""
    joint = graph.trace(function, weights, rows, delta)
    W, R, D = _split_by(joint.inputs, weights, rows)
    level = graph.dependence(joint, [W, R, D])
    for_pull = graph.frontier(joint, joint.outputs, lambda v: level[v] in (0, 1) or v in D)
    fixed, coefficients = ([v for v in for_pull if level[v] == k] for k in (0, 1))
    parts = (
        graph.extract_grouped(joint, [W], fixed),
        graph.extract_grouped(joint, [W, R], coefficients),
        graph.extract_grouped(joint, [fixed, coefficients, D], joint.outputs),
    )
    return Recursion(parts, list(map(shape_of, coefficients)), joint, D)


def jacobian(recursion: Recursion, moving: list[int], leaves: int) -> list[list[Alignment | None]]:
    """How each leaf of δ before the step depends on each after it, by leaf after, then by leaf before."""
    found: list[list[Alignment | None]] = [[None] * leaves for _ in range(leaves)]
    for i, source in zip(moving, recursion.delta, strict=True):
        for j, alignment in zip(moving, alignments(recursion.whole, source, recursion.whole.outputs), strict=True):
            found[i][j] = alignment
    return found


def _split_by(items: list[Var], *trees: Leaves) -> list[list[Var]]:
    return split_list(items, *map(len, trees), None)
