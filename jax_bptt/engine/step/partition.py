"""What to save of every step, beside the states, for the reverse pass to compute no product of it again.

`min_cut_residuals` is a minimum cut between the products of the transition and what its pullback reads: the fewest
bytes from which, with the states, all of that can be had without a product. In turn, a leaf of the state that follows
from them need not be saved (`derived_states`): h_t = o_t ⊙ tanh(c_t) of an LSTM, whose gates are saved. Whether they
are worth their memory is for `plan` to say, from what it takes to compute them again (`Recomputation`).
"""

import itertools
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax_bptt.engine.step.equations import Var, bytes_of, variables
from jax_bptt.engine.step.graph import Graph, backward_slice
from jax_bptt.engine.step.primitives import is_costly, operations

Node = Any  # whatever a graph's values are named by


class Recomputation(NamedTuple):
    """What it takes not to save residuals, of one step of one example."""

    operations: float  # of all products that are computed again; infinite where something costly is no product
    bytes: int  # by which more is saved with the residuals than without


def min_cut_residuals(
    graph: Graph, level: Mapping[Var, int], states: Iterable[Any], costly: Iterable[Var], among: Container[Var]
) -> list[Var]:
    """The fewest bytes of a row from which, with the states, what the pullback reads can be had without products.

    Args:
        graph: that of values and pullback; of its variables, level 1 tells values of rows and 2 cotangents.
        states: before and after the step.
        costly: what takes a product to compute though no equation of the graph does.
        among: what can be saved.

    Source:
        J. Ansel et al., "PyTorch 2: Faster machine learning through dynamic Python bytecode transformation and graph
        compilation", 2024, for what to save as a minimum cut.
    """
    states = set(variables(states))
    before: dict[Var, list[Var]] = {v: [] for v in costly if v not in states}
    sources, read = list(before), dict[Var, None]()
    for eqn in graph.equations:
        of_rows = [v for v in dict.fromkeys(variables(eqn.invars)) if level[v] == 1 and v not in states]
        for out in eqn.outvars:
            if level[out] == 2:
                read.update(dict.fromkeys(of_rows))
            elif level[out] == 1 and out not in states:
                before[out] = of_rows
                if is_costly(eqn) and out in among:
                    sources.append(out)
    size = {v: max(1, bytes_of(v)) for v in before}
    too_much = sum(size.values())
    return minimum_cut(before, {v: s if v in among else too_much for v, s in size.items()}, sources, read)


def derived_states(graph: Graph, before: Sequence[Var], known: Iterable[Any]) -> tuple[bool, ...]:
    """Of each leaf of the state after the step, whether what is known and the leaves that are saved tell it, too.

    Without anything costly, side effects included; a leaf is taken as saved unless an earlier one made it superfluous.
    """
    known, after = {*variables(known), *graph.constants}, graph.outputs
    derived, relied_on = [False] * len(before), set[Any]()
    for i, leaf in enumerate(after):
        if not relied_on.isdisjoint((before[i], *variables([leaf]))):
            continue
        saved = [v for j in range(len(before)) if j != i and not derived[j] for v in (before[j], after[j])]
        have = known.union(variables(saved))
        eqns, met = backward_slice(graph, [leaf], have.__contains__)
        made = {v for eqn in eqns for v in eqn.outvars}
        derived[i] = have.issuperset(set(met) - made) and not any(map(is_costly, eqns))
        relied_on.update(set(met).intersection(variables(saved)) if derived[i] else ())
    return tuple(derived)


def recomputation(graph: Graph, residuals: Iterable[Var], spared: Iterable[Var]) -> Recomputation:
    """What it takes to compute `residuals` again from the states, of which `spared` need not be saved with them."""
    costly = sum(operations(eqn) for eqn in graph.equations if is_costly(eqn))
    return Recomputation(costly, sum(map(bytes_of, residuals)) - sum(map(bytes_of, spared)))


def minimum_cut(
    before: Mapping[Node, Iterable[Node]], size: Mapping[Node, int], sources: Iterable[Node], sinks: Iterable[Node]
) -> list[Node]:
    """The values of least total size without which no sink is reached from a source; of several such, the last ones.

    By augmenting paths of fewest edges, in a network where each value is an edge of its size from its entrance to its
    exit.

    Args:
        before: of each value, those that it is computed from.
        size: of each value, a positive integer.
        sources, sinks: where paths begin and end.

    Source:
        J. Edmonds and R. M. Karp, "Theoretical improvements in algorithmic efficiency for network flow problems", 1972.
    """
    free = sum(size.values()) + 1  # more than any cut
    source, sink = object(), object()
    capacity: dict[Node, dict[Node, int]] = {source: {}, sink: {}}

    def connect(a: Node, b: Node, amount: int) -> None:
        capacity.setdefault(a, {})[b] = amount
        capacity.setdefault(b, {}).setdefault(a, 0)

    for v, amount in size.items():
        connect((v, "in"), (v, "out"), amount)
    for v, earlier in before.items():
        for u in earlier:
            if u in size:
                connect((u, "out"), (v, "in"), free)
    for v in sources:
        connect(source, (v, "in"), free)
    for v in sinks:
        if v in size:
            connect((v, "out"), sink, free)

    while sink in (came_from := _search(source, lambda a: [b for b, left in capacity[a].items() if left])):
        path = [sink]
        while path[-1] is not source:
            path.append(came_from[path[-1]])
        edges = list(itertools.pairwise(reversed(path)))
        amount = min(capacity[a][b] for a, b in edges)
        for a, b in edges:
            capacity[a][b] -= amount
            capacity[b][a] += amount

    reaches = _search(sink, lambda b: [a for a in capacity[b] if capacity[a][b]])
    return [v for v in size if (v, "in") not in reaches and (v, "out") in reaches]


def _search(start: Node, following: Callable[[Node], Iterable[Node]]) -> dict[Node, Node]:
    """What is reached from `start`, breadth first, and from where."""
    came_from, queue = {start: None}, deque([start])
    while queue:
        a = queue.popleft()
        new = [b for b in following(a) if b not in came_from]
        came_from.update(dict.fromkeys(new, a))
        queue.extend(new)
    return came_from
