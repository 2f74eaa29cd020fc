"""Graphs: functions as JAX traced them, what in them depends on what, and functions made of a part of their equations.

    graph = trace(function, *arguments)
    run   = extract(graph, inputs, outputs)        the function between them, of the equations that it takes
    interpret(graph, known, outputs, replace)      evaluated one by one, some equations in another way

A trace has its products written rows first. What is known of one equation is in `equations`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.step.equations import (
    CALLED,
    Atom,
    ClosedJaxpr,
    Equation,
    Jaxpr,
    Literal,
    Var,
    has_side_effects,
    inner_jaxprs,
    jaxpr_as_fun,
    makes_once,
    opened,
    results,
    shape_of,
    variables,
)
from jax_bptt.engine.step.products import rows_first

# Of an equation, and the values that it reads, its results, or the function to them; None leaves it as it is.
Replace = Callable[[Equation, list[Any]], Sequence[Any] | None]
Rewrite = Callable[[Equation], Callable[..., Sequence[Any]] | None]


class Graph(NamedTuple):
    """A traced function of flat arguments."""

    inputs: list[Var]
    outputs: list[Atom]
    equations: list[Equation]
    constants: dict[Var, Any]  # what it closes over
    structure: Any  # the tree of what it returns
    whole: Jaxpr


def trace(function: Callable, *arguments: Any) -> Graph:
    """The graph of `function`, with what it merely calls inlined.

    Products of a matrix with a vector become those of the vector with the matrix, which is the same of one example; of
    many, their rows come first then as everything else has them, and nothing is transposed.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = _graph(closed, jax.tree.structure(shapes))
    return retrace(graph, _inlined) if any(map(_inlined, graph.equations)) else graph


def retrace(graph: Graph, rewrite: Rewrite) -> Graph:
    """The graph with equations written as `rewrite` has them."""
    closed = jax.make_jaxpr(lambda *operands: _run(graph, rewrite, *operands))(*map(shape_of, graph.inputs))
    return _graph(closed, graph.structure)


def without_repeats(graph: Graph) -> Graph:
    """The graph in which of equations that make the same of the same only the first is left."""
    first: dict[Any, Equation] = {}
    same: dict[Var, Var] = {}

    def renamed(atoms: Sequence[Atom]) -> list[Atom]:
        return [same.get(atom, atom) if isinstance(atom, Var) else atom for atom in atoms]

    equations = []
    for old in graph.equations:
        eqn = old.replace(invars=renamed(old.invars))
        read = tuple(a if isinstance(a, Var) else (np.asarray(a.val).tobytes(), a.aval) for a in eqn.invars)
        key = eqn.primitive, read, tuple(sorted(eqn.params.items())), tuple(v.aval for v in results(eqn)), eqn.ctx
        try:
            earlier = eqn if makes_once(eqn) else first.setdefault(key, eqn)
        except TypeError:  # what cannot be compared
            earlier = eqn
        if earlier is not eqn and len(results(earlier)) == len(eqn.outvars):
            same.update(zip(eqn.outvars, earlier.outvars, strict=True))
        else:
            equations.append(eqn)
    outputs = renamed(graph.outputs)
    whole = graph.whole.replace(eqns=equations, outvars=outputs)
    return graph._replace(outputs=outputs, equations=equations, whole=whole)


def _inlined(eqn: Equation) -> Callable[..., Sequence[Any]] | None:
    if eqn.primitive.name not in CALLED:
        return rows_first(eqn)
    inner = _graph(inner_jaxprs(eqn)[0])
    return lambda *operands: _run(inner, _inlined, *operands)


def _run(graph: Graph, rewrite: Rewrite, *operands: Any) -> list[Any]:
    known = dict(zip(graph.inputs, operands, strict=True))
    return interpret(graph, known, graph.outputs, lambda eqn, of: (run := rewrite(eqn)) and run(*of), effects=True)


def _graph(jaxpr: Jaxpr | ClosedJaxpr, structure: Any = None) -> Graph:
    whole = opened(jaxpr)
    constants = dict(zip(whole.constvars, getattr(jaxpr, "consts", ()), strict=True))
    return Graph(list(whole.invars), list(whole.outvars), list(whole.eqns), constants, structure, whole)


# What depends on what.


def dependence(graph: Graph, groups: Sequence[Sequence[Var]], once: int = -1) -> dict[Var, int]:
    """For each variable the last group of inputs that it depends on; -1 where it depends on nothing.

    Closed-over arrays count as the first group. What may be made but once (`makes_once`) counts as the group `once`,
    whatever its inputs are, but for what is drawn of the first one.
    """
    level = dict.fromkeys(graph.constants, 0) | {v: k for k, group in enumerate(groups) for v in group}

    def level_of(atom: Atom) -> int:
        if isinstance(atom, Literal):
            return 0 if np.ndim(atom.val) else -1
        return level[atom]

    for eqn in graph.equations:
        known = max(map(level_of, eqn.invars), default=-1)
        if has_side_effects(eqn) or (known > 0 and makes_once(eqn)):
            known = max(known, once % len(groups))
        level.update((v, known) for v in eqn.outvars)
    return level


def has_level(level: Mapping[Var, int], wanted: int, atom: Atom) -> bool:
    """Whether an atom is a variable that depends on that group, and on none after it."""
    return isinstance(atom, Var) and level[atom] == wanted


def backward_slice(
    graph: Graph, outputs: Iterable[Atom], known: Callable[[Var], bool], effects: bool = False
) -> tuple[list[Equation], list[Var]]:
    """The equations that compute `outputs` from what is known, with all effects if asked, and the variables met."""
    met = dict.fromkeys(variables(outputs))
    eqns = []
    for eqn in reversed(graph.equations):
        if any(v in met and not known(v) for v in eqn.outvars) or (effects and has_side_effects(eqn)):
            eqns.append(eqn)
            met.update(dict.fromkeys(variables(eqn.invars)))
    return eqns[::-1], list(met)


def frontier(graph: Graph, outputs: Iterable[Atom], known: Callable[[Var], bool], effects: bool = False) -> list[Var]:
    """The known variables from which `outputs` are computed."""
    return [v for v in backward_slice(graph, outputs, known, effects)[1] if known(v)]


def reads(function: Callable, *arguments: Any) -> list[bool]:
    """Of each leaf of the arguments whether the function depends on it."""
    graph = trace(function, *arguments)
    met = set(backward_slice(graph, graph.outputs, lambda _: False)[1])
    return [v in met for v in graph.inputs]


def origins(graph: Graph, among: Sequence[Var]) -> dict[Var, frozenset[int]]:
    """For each variable the places of those among these that it is computed from, of which each is its own origin."""
    found = dict.fromkeys([*graph.constants, *graph.inputs], frozenset[int]())
    found |= {v: frozenset([i]) for i, v in enumerate(among)}
    for eqn in graph.equations:
        of = frozenset[int]().union(*(found[v] for v in variables(eqn.invars)))
        for v in eqn.outvars:
            found.setdefault(v, of)
    return found


def is_fixed(graph: Graph, atom: Atom) -> bool:
    """Whether a value may be made but once and has no derivative: as a result of side effects, or of its type."""
    made = next((eqn for eqn in graph.equations if isinstance(atom, Var) and atom in eqn.outvars), None)
    if made is None or not makes_once(made):
        return False
    return has_side_effects(made) or not jnp.issubdtype(shape_of(atom).dtype, jnp.inexact)


# Functions made of a graph.


def close(function: Callable, *arguments: Any) -> tuple[Callable, list[Any]]:
    """`pure(constants, *arguments)` that computes what the function does but closes over nothing, and the constants.

    What is constant is all that the function closes over, tracers included, in their order.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph, structure = _graph(closed), jax.tree.structure(shapes)
    constants = [jnp.asarray(constant) for constant in graph.constants.values()]
    run = _function(graph, [*graph.constants, *graph.inputs], graph.outputs, graph.equations)
    return lambda known, *given: jax.tree.unflatten(structure, run(*known, *jax.tree.leaves(given))), constants


def extract(graph: Graph, inputs: Sequence[Var], outputs: Sequence[Atom], effects: bool = False) -> Callable:
    """The function from `inputs` to `outputs`, made of the equations that it takes and no others."""
    eqns, met = backward_slice(graph, outputs, {*inputs, *graph.constants}.__contains__, effects)
    read = set(met) - set(inputs)
    constants = {v: c for v, c in graph.constants.items() if v in read}
    run = _function(graph, [*constants, *inputs], outputs, eqns)
    return lambda *values: run(*constants.values(), *values)


def _function(graph: Graph, inputs: Sequence[Var], outputs: Sequence[Atom], eqns: list[Equation]) -> Callable:
    part = graph.whole.replace(
        constvars=[],
        invars=list(inputs),
        outvars=list(outputs),
        eqns=eqns,
        debug_info=graph.whole.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(part, []))


def first_index(groups: Sequence[Sequence[Any]], values: Sequence[Sequence[Any]]) -> dict[Var, Any]:
    """The value of each variable, where one that is in several places has that of the first."""
    pairs = [pair for group, of_group in zip(groups, values, strict=True) for pair in zip(group, of_group, strict=True)]
    return {atom: value for atom, value in reversed(pairs) if isinstance(atom, Var)}


def extract_grouped(
    graph: Graph, groups: Sequence[Sequence[Atom]], outputs: Sequence[Atom], effects: bool = False
) -> Callable[..., list[Any]]:
    """As `extract`, of lists of values, one for each group. What is in several places is read in the first."""
    places = first_index(groups, [[(i, j) for j in range(len(group))] for i, group in enumerate(groups)])
    run = extract(graph, list(places), outputs, effects)
    return lambda *values: run(*(values[i][j] for i, j in places.values()))


def reuse(function: Callable, arguments: Sequence[Any], known: Any) -> Any:
    """`function(*arguments)[0]`, with the values that it returns as `[1]` taken as known and not computed again."""
    graph, leaves = trace(function, *arguments), jax.tree.leaves(known)
    n = len(graph.outputs) - len(leaves)
    run = extract_grouped(graph, [graph.outputs[n:], graph.inputs], graph.outputs[:n])
    return jax.tree.unflatten(graph.structure.children()[0], run(leaves, jax.tree.leaves(arguments)))


def interpret(
    graph: Graph, known: Mapping[Var, Any], outputs: Sequence[Atom], replace: Replace, effects: bool = False
) -> list[Any]:
    """The values of `outputs`, equation by equation, each as it is or as `replace` computes it.

    Args:
        known: values to begin with, those of the inputs as a rule; what an operation makes of values that are no
            arrays is for `replace` to say.
    """
    values = graph.constants | dict(known)

    def value(atom: Atom) -> Any:
        # A literal becomes an array of its own type: a bare Python number would take the type of its neighbour.
        return np.asarray(atom.val, jnp.result_type(atom.aval)) if isinstance(atom, Literal) else values[atom]

    for eqn in backward_slice(graph, outputs, values.__contains__, effects)[0]:
        operands = [value(atom) for atom in eqn.invars]
        replaced = replace(eqn, operands)
        made = evaluate(graph, eqn, operands) if replaced is None else replaced
        values.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in outputs]


def evaluate(graph: Graph, eqn: Equation, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation, None in place of those that are of no use."""
    read = first_index([eqn.invars], [operands])
    made = iter(_function(graph, list(read), results(eqn), [eqn])(*read.values()))
    return [next(made) if type(v) is Var else None for v in eqn.outvars]
