"""Looking into jaxprs."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters; of what depends on the platform, that of a CPU."""
    if platforms := eqn.params.get("branches_platforms"):
        on_cpu = next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)
        yield eqn.params["branches"][on_cpu].jaxpr
        return
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: isinstance(v, Jaxpr | ClosedJaxpr)):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for j in inner(eqn):
            yield from equations(j)


def primitives(function: Any, *args: Any) -> list[str]:
    """The names of the primitives that a function of arrays consists of."""
    return [eqn.primitive.name for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr)]
