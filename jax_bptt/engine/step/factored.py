"""What happens to a cotangent between two products: one multiplication, however many operations it passes.

A cotangent is a sum of terms factor ⊙ root. An operation that is linear and elementwise in it acts on the factor, which
does not depend on cotangents and so can be computed for all steps at once; a root changes where anything else happens
to it, a product as a rule.

A select between a cotangent and zero stays one, where(keep, factor ⊙ root, 0): a factor of zero would make NaN of a
root that is infinite. Factors of half precision are multiplied in single precision, since their product overflows where
they, one after the other, do not in what they make of a small root.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.engine.step.equations import Atom, Equation, Var, shape_of
from jax_bptt.engine.step.graph import Graph, evaluate, interpret
from jax_bptt.engine.step.primitives import is_zero
from jax_bptt.engine.step.products import rows_first

Case = tuple[Any, int]
"""A predicate, and which of its values is meant."""


class Term(NamedTuple):
    """`factor ⊙ root` in all cases that are named, else 0; the factor None is 1."""

    root: jax.Array
    factor: Any = None
    cases: tuple[Case, ...] = ()

    def value(self) -> jax.Array:
        made = self.root
        if self.factor is not None:
            made = (made.astype(self.factor.dtype) * self.factor).astype(made.dtype)
        return _kept(self.cases, made)

    def factor_or_ones(self) -> Any:
        return jnp.ones_like(self.root, dtype=_wide(self.root.dtype)) if self.factor is None else self.factor


@dataclasses.dataclass(eq=False)
class Cotangent:
    """A sum of terms, no two of the same root."""

    terms: list[Term]

    def value(self) -> jax.Array:
        """Its value, which is a root from now on where it is a sum."""
        value = functools.reduce(jnp.add, [term.value() for term in self.terms])
        if len(self.terms) > 1:
            self.terms = [Term(value)]
        return value


def evaluate_factored(
    graph: Graph,
    known: Mapping[Var, Any],
    delta: Mapping[Var, jax.Array],
    outputs: Sequence[Any],
    is_weight: Callable[[Atom], bool],
    transpose_from: float,
) -> list[Cotangent | jax.Array]:
    """Evaluate `outputs`, where operations that are linear and elementwise in a cotangent act on its factors instead.

    Args:
        known: values that do not depend on a cotangent, from which others are computed.
        delta: the cotangents to begin with.
        is_weight, transpose_from: as for `rows_first`, of products of a cotangent with a weight.

    Returns:
        Of each output its terms; its value, where it does not depend on a cotangent.
    """
    zeros = {eqn.outvars[0] for eqn in graph.equations if is_zero(eqn)}

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
            return [Cotangent([_times(eqn, term, place, operands)])]
        values = [operand.value() if isinstance(operand, Cotangent) else operand for operand in operands]
        rewritten = rows_first(eqn, is_weight, transpose_from)
        made = rewritten(*values) if rewritten else evaluate(graph, eqn, values)
        return [None if value is None else Cotangent([Term(value)]) for value in made]

    begin = {v: Cotangent([Term(value)]) for v, value in delta.items()}
    return interpret(graph, {**known, **begin}, outputs, replace)


def _times(eqn: Equation, term: Term, place: int, operands: Sequence[Any]) -> Term:
    """What an equation that acts on the factor makes of a term, which it reads in that place."""
    if eqn.primitive.name == "select_n":
        return term._replace(cases=(*term.cases, (operands[0], place - 1)))
    if eqn.primitive.name == "neg":
        return term._replace(factor=-term.factor_or_ones())
    other = operands[1 - place].astype(_wide(term.root.dtype))
    if eqn.primitive.name == "div":
        return term._replace(factor=term.factor_or_ones() / other)
    return term._replace(factor=other if term.factor is None else term.factor * other)


def _wide(dtype: Any) -> Any:
    """The dtype of a factor: one in which a product of several does not overflow."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


def _kept(cases: tuple[Case, ...], value: jax.Array) -> jax.Array:
    """The value in all of these cases, else 0."""
    if not cases:
        return value
    return jnp.where(_are_cases(cases), value, jnp.zeros_like(value))


def _are_cases(cases: tuple[Case, ...]) -> jax.Array:
    """Where all of these are the case."""
    return functools.reduce(jnp.logical_and, map(_is_case, cases))


def _is_case(case: Case) -> jax.Array:
    predicate, which = case
    if predicate.dtype == jnp.bool_:
        return predicate if which else ~predicate
    return predicate == which


def _sum(some: Cotangent, more: Cotangent) -> Cotangent:
    terms = list(some.terms)
    for new in more.terms:
        for i, term in enumerate(terms):
            if term.root is new.root:
                terms[i] = _merged(term, new)
                break
        else:
            terms.append(new)
    return Cotangent(terms)


def _merged(term: Term, new: Term) -> Term:
    """The sum of two terms of the same root: zero where both are, by a select, and elsewhere by one factor."""
    if _are_same(term.cases, new.cases):
        return term._replace(factor=term.factor_or_ones() + new.factor_or_ones())
    factor = _kept(term.cases, term.factor_or_ones()) + _kept(new.cases, new.factor_or_ones())
    either: tuple[Case, ...] = ()
    if term.cases and new.cases and not _are_opposite(term.cases, new.cases):
        either = ((_are_cases(term.cases) | _are_cases(new.cases), 1),)
    return term._replace(factor=factor, cases=either)


def _are_same(some: tuple[Case, ...], more: tuple[Case, ...]) -> bool:
    """Whether the cases are of the very same predicates; to compare values would be to compute."""
    pairs = zip(some, more, strict=False)
    return len(some) == len(more) and all(a is b and which == other for (a, which), (b, other) in pairs)


def _are_opposite(some: tuple[Case, ...], more: tuple[Case, ...]) -> bool:
    """Whether the cases are one predicate's true and false."""
    if len(some) != 1 or len(more) != 1:
        return False
    ((first, which), (second, other)) = *some, *more
    return first is second and which != other and first.dtype == jnp.bool_


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
