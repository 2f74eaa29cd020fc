"""What happens to a cotangent between two products: one multiplication, however many operations it passes.

A cotangent is a sum of terms scale ⊙ root. An operation that is linear and elementwise in it acts on the scale, which
does not depend on cotangents and so can be computed for all steps at once; a root changes where anything else happens
to it, a product as a rule.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from jax_bptt.jaxprs import evaluate, needed, shape_of, variables


class _Scaled(NamedTuple):
    """`scale ⊙ root`; the scale None is 1."""

    root: jax.Array
    scale: jax.Array | None = None

    def value(self) -> jax.Array:
        return self.root if self.scale is None else self.root * self.scale

    def scale_or_ones(self) -> jax.Array:
        return jnp.ones_like(self.root) if self.scale is None else self.scale


_Cotangent = list[_Scaled]
"""A sum of scaled roots, no two of the same root."""


def evaluate_scaled(closed: ClosedJaxpr, known: dict[Var, Any], delta: dict[Var, Any], outvars: list[Any]) -> list[Any]:
    """Evaluate `outvars`, where operations that are linear and elementwise in a cotangent act on its scale instead.

    Args:
        known: values that do not depend on a cotangent, from which others are computed.
        delta: the cotangents to begin with.
    """
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | known
    moving: dict[Var, _Cotangent] = {v: [_Scaled(value)] for v, value in delta.items()}
    zeros = {eqn.outvars[0] for eqn in jaxpr.eqns if _is_zero(eqn)}

    def summed(v: Var) -> jax.Array:
        """The value of a cotangent, which is a root from now on where it is a sum."""
        value = functools.reduce(jnp.add, [term.value() for term in moving[v]])
        if len(moving[v]) > 1:
            moving[v] = [_Scaled(value)]
        return value

    for eqn in needed(jaxpr, outvars, {*known, *delta}.__contains__)[0]:
        cotangents = [v for v in dict.fromkeys(variables(eqn.invars)) if v in moving]
        if not cotangents:
            known |= evaluate(jaxpr, eqn, known)
        elif eqn.primitive.name in ("add", "add_any") and all(v in cotangents for v in eqn.invars):
            moving[eqn.outvars[0]] = _sum(*(moving[v] for v in variables(eqn.invars)))
        elif _acts_on_scale(eqn, cotangents, zeros):
            (v,) = cotangents
            summed(v)
            (term,) = moving[v]
            (scale,) = evaluate(jaxpr, eqn, known | {v: term.scale_or_ones()}).values()
            moving[eqn.outvars[0]] = [_Scaled(term.root, scale)]
        else:
            values = {v: summed(v) for v in cotangents}
            moving |= {v: [_Scaled(result)] for v, result in evaluate(jaxpr, eqn, known | values).items()}

    def value(atom):
        if isinstance(atom, Literal):
            return jnp.asarray(atom.val, jnp.result_type(atom.aval))
        return summed(atom) if atom in moving else known[atom]

    return [value(atom) for atom in outvars]


def _sum(some: _Cotangent, more: _Cotangent) -> _Cotangent:
    terms = list(some)
    for new in more:
        for i, term in enumerate(terms):
            if term.root is new.root:
                terms[i] = _Scaled(term.root, term.scale_or_ones() + new.scale_or_ones())
                break
        else:
            terms.append(new)
    return terms


def _acts_on_scale(eqn: JaxprEqn, cotangents: list[Var], zeros: set[Var]) -> bool:
    """Whether an equation maps scale ⊙ root to f(scale) ⊙ root, of one cotangent that it reads in one place."""
    places = [i for i, v in enumerate(eqn.invars) if v in cotangents]
    if len(places) > 1 or len(eqn.outvars) > 1 or shape_of(cotangents[0]) != shape_of(eqn.outvars[0]):
        return False
    match eqn.primitive.name:
        case "neg" | "mul":
            return True
        case "div":
            return places == [0]
        case "select_n":  # by what does not depend on a cotangent, between it and zeros
            others = [v for i, v in enumerate(eqn.invars) if i not in (0, *places)]
            return places != [0] and all(isinstance(v, Var) and v in zeros for v in others)
    return False


def _is_zero(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "broadcast_in_dim" and isinstance(eqn.invars[0], Literal) and eqn.invars[0].val == 0
