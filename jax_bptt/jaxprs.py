"""Reading jaxprs: what depends on what, and functions made of a subset of the equations.

`trace` makes the jaxpr of a function, with nested `jit`s inlined and products W x written as x Wᵀ. `levels` tells of
each variable on which group of inputs it depends; `part` is the function from some variables to others, made of the
equations between them and no others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun


def trace(function: Callable, *arguments: Any) -> tuple[ClosedJaxpr, Any]:
    """The jaxpr of `function` with nested `jit`s inlined, and the shapes of what it returns.

    Products of a matrix with a vector become those of the vector with the matrix, which is the same of one example; of
    many, their rows come first then as everything else has them, and nothing is transposed.
    """
    closed, shapes_out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    if any(_nested(eqn) or _is_matrix_times_vector(eqn) for eqn in closed.jaxpr.eqns):
        closed = jax.make_jaxpr(lambda *values: _inlined(closed, *values))(*map(shape_of, closed.jaxpr.invars))
    return closed, shapes_out


def _nested(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr that the equation only calls, if that is all it does."""
    if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call"):
        return eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return None


def _inlined(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Evaluate `closed` equation by equation, so that to trace this call is to inline what it calls."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def value(atom):
        # A literal becomes an array of its own type: a bare Python number would take the type of its neighbour.
        return np.asarray(atom.val, jnp.result_type(atom.aval)) if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inner = _nested(eqn)
        if inner is not None:
            values.update(zip(eqn.outvars, _inlined(inner, *map(value, eqn.invars)), strict=True))
        elif _is_matrix_times_vector(eqn):
            values[eqn.outvars[0]] = product(eqn, *map(value, eqn.invars), swap=True)
        else:
            values.update(evaluate(jaxpr, eqn, values))
    return [value(atom) for atom in jaxpr.outvars]


def _is_matrix_times_vector(eqn: JaxprEqn) -> bool:
    """Whether all axes of the result of a product are of its first operand, and there are some."""
    if eqn.primitive.name != "dot_general":
        return False
    (left, right), batched = eqn.params["dimension_numbers"]
    matrix, vector = (len(shape_of(v).shape) for v in eqn.invars)
    return batched == ((), ()) and vector == len(right) and matrix > len(left)


def product(
    eqn: JaxprEqn, left: Any, right: Any, *, axes: tuple[Any, Any] | None = None, swap: bool = False
) -> jax.Array:
    """The result of a `dot_general` equation, of other operands.

    Args:
        axes: those that are contracted, if they are others now.
        swap: whether to multiply the second with the first.
    """
    contracted, batched = eqn.params["dimension_numbers"]
    contracted, precision = axes or contracted, eqn.params["precision"]
    if swap:
        left, right, contracted, batched = right, left, contracted[::-1], batched[::-1]
        precision = precision[::-1] if isinstance(precision, tuple) else precision
    dimensions = contracted, batched
    kind = eqn.params["preferred_element_type"]
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=kind)


def evaluate(jaxpr: Jaxpr, eqn: JaxprEqn, values: Mapping[Var, Any]) -> dict[Var, Any]:
    """The results of one equation of `jaxpr`, of the values of the variables that it reads."""
    invars = list(dict.fromkeys(variables(eqn.invars)))
    outvars = results(eqn)
    return dict(
        zip(outvars, _function(jaxpr, (), (), invars, outvars, [eqn])(*(values[v] for v in invars)), strict=True)
    )


def results(eqn: JaxprEqn) -> list[Var]:
    """The variables that an equation defines, without those that are of no use, which are of a type of their own."""
    return [v for v in eqn.outvars if type(v) is Var]


def levels(jaxpr: Jaxpr, groups: Sequence[Sequence[Var]]) -> dict[Var, int]:
    """For each variable the last group of inputs that it depends on; -1 where it depends on nothing.

    Closed-over arrays count as the first group. What an equation with side effects returns counts as the last, since
    such an equation is to run once per step, whatever its inputs are.
    """
    level = dict.fromkeys(jaxpr.constvars, 0) | {v: k for k, group in enumerate(groups) for v in group}

    def level_of(atom) -> int:
        if isinstance(atom, Literal):
            return 0 if np.ndim(atom.val) else -1
        return level[atom]

    for eqn in jaxpr.eqns:
        known = len(groups) - 1 if eqn.effects else max(map(level_of, eqn.invars), default=-1)
        level.update((v, known) for v in eqn.outvars)
    return level


def needed(
    jaxpr: Jaxpr, outvars: Iterable[Any], known: Callable[[Var], bool], effects: bool = False
) -> tuple[list[JaxprEqn], list[Var]]:
    """The equations that compute `outvars` from what is known, and all variables that they meet."""
    met = dict.fromkeys(variables(outvars))
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in met and not known(v) for v in eqn.outvars) or (effects and eqn.effects):
            eqns.append(eqn)
            met.update(dict.fromkeys(variables(eqn.invars)))
    return eqns[::-1], list(met)


def inputs(jaxpr: Jaxpr, outvars: Iterable[Any], known: Callable[[Var], bool], effects: bool = False) -> list[Var]:
    """The known variables from which `outvars` are computed."""
    return [v for v in needed(jaxpr, outvars, known, effects)[1] if known(v)]


def part(closed: ClosedJaxpr, invars: Sequence[Var], outvars: Sequence[Any], effects: bool = False) -> Callable:
    """The function from `invars` to `outvars`, made of the equations that it needs and no others."""
    known = {*invars, *closed.jaxpr.constvars}
    eqns, met = needed(closed.jaxpr, outvars, known.__contains__, effects)
    constants = {
        v: c for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True) if v in met and v not in invars
    }
    return _function(closed.jaxpr, constants.keys(), constants.values(), invars, outvars, eqns)


def at_first_place(groups: Sequence[Sequence[Any]], values: Sequence[Sequence[Any]]) -> dict[Var, Any]:
    """The value of each variable, where one that is in several places has that of the first."""
    pairs = [pair for group, of_group in zip(groups, values, strict=True) for pair in zip(group, of_group, strict=True)]
    return {atom: value for atom, value in reversed(pairs) if isinstance(atom, Var)}


def grouped(
    closed: ClosedJaxpr, groups: Sequence[Sequence[Any]], outvars: Sequence[Any], effects: bool = False
) -> Callable[..., list[Any]]:
    """As `part`, a function of lists of values, one for each group. What is in several places is read in the first."""
    places = at_first_place(groups, [[(i, j) for j in range(len(group))] for i, group in enumerate(groups)])
    run = part(closed, list(places), outvars, effects)
    return lambda *values: run(*(values[i][j] for i, j in places.values()))


def given(function: Callable, arguments: Sequence[Any], known: Any) -> Any:
    """`function(*arguments)[0]`, with the values that it returns as `[1]` taken as known and not computed again."""
    closed, (results, _) = trace(function, *arguments)
    jaxpr, leaves = closed.jaxpr, jax.tree.leaves(known)
    n = len(jaxpr.outvars) - len(leaves)
    run = grouped(closed, [jaxpr.outvars[n:], jaxpr.invars], jaxpr.outvars[:n])
    return jax.tree.unflatten(jax.tree.structure(results), run(leaves, jax.tree.leaves(arguments)))


def _function(jaxpr: Jaxpr, constvars, constants, invars, outvars, eqns) -> Callable[..., list[Any]]:
    part = jaxpr.replace(
        constvars=list(constvars),
        invars=list(invars),
        outvars=list(outvars),
        eqns=eqns,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(part, list(constants)))


def variables(atoms: Iterable[Any]) -> list[Var]:
    """Those of the atoms that are variables, and not literals."""
    return [atom for atom in atoms if isinstance(atom, Var)]


def shape_of(variable: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a variable or literal."""
    aval = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def is_costly(eqn: JaxprEqn) -> bool:
    """Whether an equation is a product, a loop, or another thing not to be computed twice, or has one inside."""
    if eqn.primitive.name in _COSTLY:
        return True
    inner = [leaf for value in eqn.params.values() for leaf in jax.tree.leaves(value, is_leaf=_is_jaxpr)]
    return any(is_costly(eqn) for leaf in filter(_is_jaxpr, inner) for eqn in leaf.eqns)


_COSTLY = {"dot_general", "ragged_dot_general", "conv_general_dilated", "random_bits", "sort", "scan", "while"}


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def divide(items: Sequence[Any], *sizes: int | None) -> list[list[Any]]:
    """Consecutive pieces of these sizes; None, as the last of them, is all the rest."""
    pieces, start = [], 0
    for size in sizes:
        end = len(items) if size is None else start + size
        pieces.append(list(items[start:end]))
        start = end
    return pieces
