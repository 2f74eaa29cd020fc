"""Where credit comes from and where it is wanted, and how far back and on either reaches through a transition."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax_bptt.engine.step import graph
from jax_bptt.engine.step.equations import Var


class Ends(NamedTuple):
    """Where credit comes from, and where it is wanted."""

    credited: tuple[bool, ...]  # per state leaf after the step: whether it has credit from elsewhere than the next step
    state: tuple[bool, ...]  # per state leaf before the step: whether δ itself is wanted
    weights: tuple[bool, ...]  # per weight: whether its cotangent is wanted
    drive: tuple[bool, ...]  # per leaf of the drive


def reach(forwards: graph.Graph, groups: Sequence[Sequence[Var]], ends: Ends) -> Ends:
    """Ends as they come to: a leaf of the state after the step is credited from the next one, too, if it gets there.

    And in the place of whether δ is wanted, whether the leaf depends on anything whose cotangent is wanted.

    Args:
        forwards: the graph of the transition.
        groups: its inputs, weights, before and drive.
    """

    def those(chosen: Sequence[bool], items: Sequence[Any]) -> list[Any]:
        return list(itertools.compress(items, chosen))

    weights, before, drive = groups
    after = forwards.outputs[: len(before)]
    asked = [*those(ends.weights, weights), *those(ends.drive, drive)]
    credited, depends = ends.credited, ends.state
    for _ in before:  # a step further back, and a step further on
        known = credited, depends
        met = set(graph.backward_slice(forwards, those(credited, after), lambda _: False)[1])
        level = graph.dependence(forwards, [forwards.inputs, [*asked, *those(depends, before)]])
        credited = tuple(c or v in met for c, v in zip(credited, before, strict=True))
        depends = tuple(d or graph.has_level(level, 1, v) for d, v in zip(depends, after, strict=True))
        if known == (credited, depends):
            break
    return ends._replace(credited=credited, state=depends)
