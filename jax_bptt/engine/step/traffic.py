"""What a step moves through memory, cut into its parts or whole: what tells where its equations should run.

Cut, the loops hold nothing but the recursions. Everything else is done for all rows of a window at once, for which
states, credit, coefficients and δ are written once and read once or twice; no weight is touched in a loop.

Whole, as `jax.grad` of `lax.scan` has it, each step is one body. What the pullback reads of a step is written forwards
and read backwards, and the gradient of each weight is read and written at every step.

So which is better is a matter of bytes: of few weights and a large state, which is a memory that is carried along, or
passes through, or moves up by one row, everything is better done where it stands. And where something is costly that is
no product, a convolution, a solver, a loop, rows gain nothing, and do it a second time.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from jax_bptt.engine.leaves import Leaves, combine, differentiable, nbytes, only, split_list
from jax_bptt.engine.step import graph, primitives
from jax_bptt.engine.step.equations import Atom, Var, bytes_of, results, variables
from jax_bptt.engine.step.pullback import Pullback
from jax_bptt.engine.step.split import SplitStep
from jax_bptt.model import Save

ARRAY = 2048
"""Bytes that are moved in the time that it takes to write one more array in a loop, however small it is.

(Measured on two CPU cores: a loop that writes 90 to 240 arrays of up to 32 numbers took 0.13 to 0.5 µs for each of
them at every step.)
"""


class Traffic(NamedTuple):
    """Bytes that a time step of all examples moves, beyond what it moves in any case."""

    cut: float
    whole: float
    saved_cut: float  # bytes that are saved of every step
    saved_whole: float
    of_rows: float  # bytes that are made of a window for each of its steps
    opaque: bool  # whether the whole step has something costly in it that is no product


def weigh(
    parts: SplitStep,
    pullback: Pullback,
    shapes: tuple[Leaves, Leaves, Leaves],
    wanted: tuple[Leaves, Leaves],
    reads: Iterable[bool] | None,
    examples: int,
    save: Save,
) -> Traffic:
    """What a step moves.

    Args:
        shapes: of the weights, of the state before, and of x.
        wanted: of the weights and of x those whose cotangent is wanted, None in place of others.
        reads: per leaf of the outputs whether it counts; None: all may.
        examples: of how many examples a time step is.
        save: what is saved of the parts.
    """
    weights, before, x = shapes
    if parts.opaque or (parts.opaque_readout and reads is None):
        return Traffic(0, 0, 0, 0, 0, opaque=True)
    joint = _joint(parts, shapes, wanted, pullback.has_delta, reads)
    drive = sum(map(nbytes, jax.eval_shape(parts.project, weights, x)))
    states = sum(map(nbytes, before))
    saved = [*before]
    if save == "dots":
        saved = [s for s, is_derived in zip(before, pullback.derived, strict=True) if not is_derived]
        saved += pullback.residuals
    delta = only(pullback.has_delta, before)
    credit = sum(map(nbytes, only(parts.reads_after, delta))) + sum(map(nbytes, only(parts.reads_before, delta)))
    deltas, coefficients = sum(map(nbytes, delta)), sum(map(nbytes, pullback.coefficients))
    saved_cut = sum(map(nbytes, saved))
    again = 0 if save == "dots" else sum(map(nbytes, pullback.residuals))
    of_rows = 2 * states + again + 2 * credit + deltas + coefficients + 2 * drive + joint.contributions
    cut = 2 * saved_cut + 2 * states + 2 * credit + 3 * deltas + 2 * coefficients + 4 * drive + 2 * joint.contributions
    sums = [w for w in wanted[0] if w is not None]
    return Traffic(
        cut=examples * cut + ARRAY * (len(saved) + sum(pullback.has_delta)),
        whole=examples * 2 * joint.saved + 4 * sum(map(nbytes, sums)) + ARRAY * (joint.arrays + len(sums)),
        saved_cut=examples * saved_cut,
        saved_whole=examples * joint.saved,
        of_rows=examples * of_rows,
        opaque=joint.opaque,
    )


class _Joint(NamedTuple):
    """What is read off the graph of a step and of its pullback."""

    saved: int  # bytes of what the pullback reads, of states and of what is made of them
    arrays: int  # how many arrays that is
    contributions: int  # bytes that are written on the way to the weights' cotangents, but for products
    opaque: bool


def _joint(
    parts: SplitStep,
    shapes: tuple[Leaves, Leaves, Leaves],
    wanted: tuple[Leaves, Leaves],
    has_delta: tuple[bool, ...],
    reads: Iterable[bool] | None,
) -> _Joint:
    def values_and_pullback(weights: Leaves, before: Leaves, x: Leaves, bars: Leaves | None = None) -> Any:
        def step(some: Leaves, some_before: Leaves, some_x: Leaves) -> tuple[Leaves, Leaves]:
            w, h, u = combine(some, weights), combine(some_before, before), combine(some_x, x)
            after = parts.transition_with_effects(w, h, parts.project(w, u))
            outputs = differentiable(jax.tree.leaves(parts.readout(w, after, u, h)))
            return [*only(has_delta, after), *(outputs if reads is None else only(reads, outputs))], after

        moving = only(wanted[0], weights), only(has_delta, before), only(wanted[1], x)
        made, pull, after = jax.vjp(step, *moving, has_aux=True)
        return (made, after) if bars is None else (after, pull(bars))

    bars, _ = jax.eval_shape(values_and_pullback, *shapes)
    traced = graph.trace(values_and_pullback, *shapes, bars)
    W, S, X, D = split_list(traced.inputs, *map(len, shapes), None)
    level = graph.dependence(traced, [W, X, S, D], once=2)
    after, bars_out = split_list(traced.outputs, len(S), None)
    through = {v for v, new in zip(S, after, strict=True) if v is new}
    eqns, _ = graph.backward_slice(traced, traced.outputs, lambda _: False)
    last = [eqn for eqn in eqns if any(level[v] == 3 for v in results(eqn))]
    read = {v for eqn in last for v in variables(eqn.invars) if 0 < level[v] < 3}
    saved = [v for v in read if v not in through and v not in X]
    n = sum(w is not None for w in wanted[0])
    return _Joint(
        saved=sum(map(bytes_of, saved)),
        arrays=len(saved),
        contributions=_written(traced, bars_out[:n], level),
        opaque=any(primitives.is_opaque(eqn) and any(level[v] > 0 for v in results(eqn)) for eqn in eqns),
    )


def _written(traced: graph.Graph, weights_bar: list[Atom], level: dict[Var, int]) -> int:
    """The bytes of all rows that are written on the way to the weights' cotangents.

    Products are sums over rows, and so is all that is made of them; elementwise operations are done where they are
    read, by another kind of operation or by the sum over rows; a scatter reads what it adds.
    """
    eqns, _ = graph.backward_slice(traced, weights_bar, lambda v: level[v] < 3)
    summed, total, ends = set[Var](), 0, set(variables(weights_bar))
    read_whole = ends | {v for eqn in eqns if not primitives.is_elementwise(eqn) for v in variables(eqn.invars)}
    for eqn in eqns:
        made, read = results(eqn), variables(eqn.invars)
        if primitives.is_product(eqn) or not summed.isdisjoint(read):
            summed.update(made)
        elif eqn.primitive.name.startswith("scatter"):
            total += sum(bytes_of(v) for v in read if level[v] == 3)
        elif not primitives.is_elementwise(eqn) or not read_whole.isdisjoint(made):
            total += sum(map(bytes_of, made))
    return total
