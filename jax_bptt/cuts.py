"""The minimum cut of a graph of values that are computed from each other."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

_SOURCE, _SINK = object(), object()


def minimum_cut(before: Mapping[Any, Iterable[Any]], size: Mapping[Any, int], sources: Any, sinks: Any) -> list[Any]:
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
    capacity: dict[Any, dict[Any, int]] = {_SOURCE: {}, _SINK: {}}

    def connect(a, b, amount):
        capacity.setdefault(a, {})[b] = amount
        capacity.setdefault(b, {}).setdefault(a, 0)

    for v, amount in size.items():
        connect((v, "in"), (v, "out"), amount)
    for v, earlier in before.items():
        for u in earlier:
            if u in size:
                connect((u, "out"), (v, "in"), free)
    for v in sources:
        connect(_SOURCE, (v, "in"), free)
    for v in sinks:
        if v in size:
            connect((v, "out"), _SINK, free)

    while path := _shortest_path(capacity):
        amount = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= amount
            capacity[b][a] += amount

    reaches = {_SINK}
    queue = deque(reaches)
    while queue:
        b = queue.popleft()
        for a in capacity[b]:
            if a not in reaches and capacity[a][b]:
                reaches.add(a)
                queue.append(a)
    return [v for v in size if (v, "in") not in reaches and (v, "out") in reaches]


def _shortest_path(capacity: Mapping[Any, Mapping[Any, int]]) -> list[tuple[Any, Any]]:
    """The edges of a path with capacity left from the source to the sink; none if there is no such path."""
    came_from: dict[Any, Any] = {_SOURCE: None}
    queue = deque([_SOURCE])
    while queue and _SINK not in came_from:
        a = queue.popleft()
        for b, left in capacity[a].items():
            if left and b not in came_from:
                came_from[b] = a
                queue.append(b)
    path, node = [], _SINK
    while came_from.get(node) is not None:
        path.append((came_from[node], node))
        node = came_from[node]
    return path[::-1]
