"""Transposes, done as late as they can be, which as a rule is never.

A step that is written for a batch as `jax.vmap` of one of one example has its products of weights and rows as `[H, B]`,
and goes on with them like that to where they meet something of `[B, H]`. Rows first, a product is `[B, H]` to begin
with. So here a transpose is not done where it stands, but handed on through all that is elementwise or along axes, to
where it meets another that undoes it, is read by a product, to which it is all one, or by what it cannot pass.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from jax_bptt.engine.step import graph, primitives
from jax_bptt.engine.step.equations import Atom, Equation, Var, bind, is_placed, shape_of, variables
from jax_bptt.engine.step.products import contracted_axes, product

Order: TypeAlias = tuple[int, ...]


class Turned(NamedTuple):
    """The value `jnp.transpose(array, order)`, which is not made yet."""

    array: Any
    order: Order


def transpose_late(whole: graph.Graph, stays: Callable[[Atom], bool]) -> graph.Graph:
    """The graph with its transposes as late as they can be, those left out that undo each other.

    Args:
        stays: of which values transposes are done where they stand: of those that are made once.
    """

    def is_late(eqn: Equation) -> bool:
        return eqn.primitive.name == "transpose" and not stays(eqn.invars[0])

    if not any(map(is_late, whole.equations)):
        return whole
    returned, spread = set(variables(whole.outputs)), _spread(whole)

    def replace(eqn: Equation, operands: list[Any]) -> Sequence[Any] | None:
        if is_late(eqn):
            array, before = _parts(operands[0])
            made = [_turned(array, _along(before, eqn.params["permutation"]))]
        elif any(isinstance(operand, Turned) for operand in operands):
            made = _hand_on(whole, eqn, operands, [isinstance(a, Var) and a in spread for a in eqn.invars])
        else:
            return None
        # What is returned, others read as it is returned: the readout reads the state, and nothing beside it.
        return [_settled(value) if v in returned else value for v, value in zip(eqn.outvars, made, strict=True)]

    def run(*operands: Any) -> list[Any]:
        known = dict(zip(whole.inputs, operands, strict=True))
        return list(map(_settled, graph.interpret(whole, known, whole.outputs, replace, effects=True)))

    return graph.trace(run, *map(shape_of, whole.inputs))._replace(structure=whole.structure)


def _hand_on(whole: graph.Graph, eqn: Equation, operands: list[Any], spread: Sequence[bool]) -> list[Any]:
    """The results of an equation of which some operands are turned, themselves turned where it can hand that on.

    Args:
        spread: which operands are broadcast, so that it is all one how they are turned.
    """
    contracted = contracted_axes(eqn)
    if contracted is not None:
        (left, right), orders = zip(*map(_parts, operands), strict=True)
        axes = _along(orders[0], contracted[0]), _along(orders[1], contracted[1])
        of_left, of_right = (_without(order, of) for order, of in zip(orders, contracted, strict=True))
        made = product(eqn, left, right, axes=axes)
        return [_turned(made, (*of_left, *(len(of_left) + axis for axis in of_right)))]
    order = _common_order(operands, spread)
    are_alike = all(jnp.ndim(_parts(a)[0]) in (0, len(order)) for a in operands)
    params = _params_along(eqn, order) if are_alike else None
    if params is None:
        return graph.evaluate(whole, eqn, list(map(_settled, operands)))
    left_out = eqn.params["axes"] if eqn.primitive.name in _REDUCTIONS else ()
    made = bind(eqn, [_in_order(a, order) for a in operands], params)
    return [_turned(value, _without(order, left_out)) for value in made]


_REDUCTIONS = {f"reduce_{name}" for name in ("sum", "max", "min", "prod", "and", "or", "xor")} | {"argmax", "argmin"}
_ALONG = {"split": "axis", "concatenate": "dimension"}
_ALONG |= {f"cum{name}": "axis" for name in ("sum", "prod", "max", "min", "logsumexp")}


def _params_along(eqn: Equation, order: Order) -> dict[str, Any] | None:
    """The params with which an equation does to turned operands what it does to them; None where it has none."""
    name, params = eqn.primitive.name, eqn.params
    if is_placed(eqn):
        return None
    if primitives.is_elementwise(eqn):
        is_alike = shape_of(eqn.outvars[0]).ndim == len(order)  # but for bits read as numbers of another width
        return params if is_alike else None
    if name in _REDUCTIONS:
        return params | {"axes": _along(order, params["axes"])}
    if name == "slice":
        along = ("start_indices", "limit_indices", "strides")
        return params | {key: params[key] and _along(params[key], _inverse(order)) for key in along}
    axis = _ALONG.get(name)
    return params | {axis: order[params[axis]]} if axis else None


def _spread(whole: graph.Graph) -> set[Var]:
    """What is broadcast, from fewer numbers or by axes of one, and what is made of such elementwise."""
    spread = set[Var]()
    for eqn in whole.equations:
        arrays = [a for a in variables(eqn.invars) if shape_of(a).ndim]
        is_broadcast = eqn.primitive.name == "broadcast_in_dim"
        if is_broadcast or (primitives.is_elementwise(eqn) and spread.issuperset(arrays)):
            spread.update(eqn.outvars)
    return spread


def _common_order(operands: Sequence[Any], spread: Sequence[bool]) -> Order:
    """The order that most of the operands are in; of as many, one that is turned."""
    free = [isinstance(a, Turned) or not is_spread for a, is_spread in zip(operands, spread, strict=True)]
    orders = [_parts(a)[1] for a in itertools.compress(operands, free) if jnp.ndim(_parts(a)[0])]
    return max(orders, key=lambda order: (orders.count(order), order != tuple(range(len(order)))))


def _parts(value: Any) -> tuple[Any, Order]:
    return value if isinstance(value, Turned) else (value, tuple(range(jnp.ndim(value))))


def _turned(array: Any, order: Order) -> Any:
    return array if order == tuple(range(len(order))) else Turned(array, order)


def _settled(value: Any) -> Any:
    return jnp.transpose(*value) if isinstance(value, Turned) else value


def _in_order(value: Any, order: Order) -> Any:
    """The array that is this value once it is transposed like that; a number is left as it is."""
    array, of = _parts(value)
    if of in ((), order):
        return array
    return jnp.transpose(_settled(value), _inverse(order))


def _inverse(order: Order) -> Order:
    """The order that undoes it."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _along(items: Sequence[int], places: Iterable[int]) -> Order:
    return tuple(items[place] for place in places)


def _without(order: Order, axes: Iterable[int]) -> Order:
    """The order of what is left of an array without some axes of what it is transposed to."""
    left = [axis for i, axis in enumerate(order) if i not in set(axes)]
    return tuple(map(sorted(left).index, left))
