"""What happens to a cotangent between two products: one multiplication, however many operations it passes.

A cotangent is a sum of terms factor ⊙ root. An operation that is linear and elementwise in it acts on the factor, which
does not depend on cotangents and so can be computed for all steps at once; a root changes where anything else happens
to it, a product as a rule. Where the roots of δ_{t−1} are leaves of δ_t, ∂h_t/∂h_{t−1} is elementwise.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.engine.graph import Equation, Graph, Var, evaluate, interpret, shape_of, vector_first


class Term(NamedTuple):
    """`factor ⊙ root`; the factor None is 1."""

    root: jax.Array
    factor: jax.Array | None = None
    leaves: frozenset[int] | None = None  # of δ, if it is elementwise in them and depends on nothing else of δ

    def value(self) -> jax.Array:
        return self.root if self.factor is None else self.root * self.factor

    def factor_or_ones(self) -> jax.Array:
        return jnp.ones_like(self.root) if self.factor is None else self.factor


@dataclasses.dataclass(eq=False)
class Cotangent:
    """A sum of terms, no two of the same root."""

    terms: list[Term]

    def value(self) -> jax.Array:
        """Its value, which is a root from now on where it is a sum."""
        value = functools.reduce(jnp.add, [term.value() for term in self.terms])
        if len(self.terms) > 1:
            self.terms = [Term(value, None, self.leaves())]
        return value

    def leaves(self) -> frozenset[int] | None:
        """The leaves of δ that it is elementwise in; None where it is not."""
        found = [term.leaves for term in self.terms]
        return None if None in found else frozenset().union(*filter(None, found))


def evaluate_factored(
    graph: Graph, known: Mapping[Var, Any], delta: Mapping[Var, jax.Array], outputs: Sequence[Any], transpose: bool
) -> list[Cotangent | jax.Array]:
    """Evaluate `outputs`, where operations that are linear and elementwise in a cotangent act on its factors instead.

    Args:
        known: values that do not depend on a cotangent, from which others are computed.
        delta: the cotangents to begin with.
        transpose: whether a matrix that a cotangent is multiplied with is transposed first, if need be.

    Returns:
        Of each output its terms; its value, where it does not depend on a cotangent.
    """
    zeros = {eqn.outvars[0] for eqn in graph.equations if _is_zero(eqn)}

    def replace(eqn: Equation, operands: list[Any]) -> list[Any] | None:
        moving = [i for i, operand in enumerate(operands) if isinstance(operand, Cotangent)]
        if not moving:
            return None
        if eqn.primitive.name in ("add", "add_any") and len(moving) == len(operands):
            return [_sum(operands[0], operands[1])]
        if _acts_on_factor(eqn, moving, zeros):
            (place,) = moving
            operands[place].value()
            (term,) = operands[place].terms
            operands[place] = term.factor_or_ones()
            (factor,) = evaluate(graph, eqn, operands)
            return [Cotangent([term._replace(factor=factor)])]
        values = [operand.value() if isinstance(operand, Cotangent) else operand for operand in operands]
        rewritten = vector_first(eqn, transpose)
        made = iter(rewritten(*values) if rewritten else evaluate(graph, eqn, values))
        return [Cotangent([Term(next(made))]) if type(v) is Var else None for v in eqn.outvars]

    begin = {v: Cotangent([Term(value, None, frozenset([i]))]) for i, (v, value) in enumerate(delta.items())}
    return interpret(graph, {**known, **begin}, outputs, replace)


def _sum(some: Cotangent, more: Cotangent) -> Cotangent:
    terms = list(some.terms)
    for new in more.terms:
        for i, term in enumerate(terms):
            if term.root is new.root:
                terms[i] = term._replace(factor=term.factor_or_ones() + new.factor_or_ones())
                break
        else:
            terms.append(new)
    return Cotangent(terms)


def _acts_on_factor(eqn: Equation, moving: list[int], zeros: set[Var]) -> bool:
    """Whether an equation maps factor ⊙ root to f(factor) ⊙ root, of one cotangent that it reads in one place."""
    if len(moving) > 1 or len(eqn.outvars) > 1 or shape_of(eqn.invars[moving[0]]) != shape_of(eqn.outvars[0]):
        return False
    match eqn.primitive.name:
        case "neg" | "mul":
            return True
        case "div":
            return moving == [0]
        case "select_n":  # by what does not depend on a cotangent, between it and zeros
            others = [v for i, v in enumerate(eqn.invars) if i not in (0, *moving)]
            return moving != [0] and all(isinstance(v, Var) and v in zeros for v in others)
    return False


def _is_zero(eqn: Equation) -> bool:
    return eqn.primitive.name == "broadcast_in_dim" and getattr(eqn.invars[0], "val", None) == 0
