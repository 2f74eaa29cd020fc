"""Products of matrices and rows: which axes they contract, how many rows they have, and how to write them rows first.

What is not known of an equation is left as it is: a product with params that are not known is not rewritten.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.engine.leaves import concrete
from jax_bptt.engine.step.equations import Atom, Equation, is_placed, shape_of


def product(
    eqn: Equation, left: Any, right: Any, *, axes: tuple[Sequence[int], Sequence[int]], swapped: bool = False
) -> jax.Array:
    """The result of a product's equation, of other operands, contracted along these axes; or of those in turn."""
    kind, precision = eqn.params["preferred_element_type"], eqn.params["precision"]
    precision = precision[::-1] if swapped and type(precision) is tuple else precision
    return jax.lax.dot_general(left, right, (axes, ((), ())), precision=precision, preferred_element_type=kind)


def contracted_axes(eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes that a product contracts; None where it is none that `product` can rewrite."""
    known = {"dimension_numbers", "precision", "preferred_element_type", "out_sharding"}
    if eqn.primitive.name != "dot_general" or eqn.params.keys() - known or is_placed(eqn):
        return None
    plain = type(None), jax.lax.Precision, tuple  # and no algorithm, of operands in order
    if type(eqn.params["precision"]) not in plain:
        return None
    (left, right), batched = eqn.params["dimension_numbers"]
    return None if any(map(len, batched)) else (tuple(left), tuple(right))


def rows_first(
    eqn: Equation, is_weight: Callable[[Atom], bool] | None = None, transpose_from: float = math.inf
) -> Callable[..., list[jax.Array]] | None:
    """How to compute a product of a matrix and rows, the rows first; None if it is none, or written so already.

    Args:
        is_weight: which operand is the matrix. None: the one that the other, a vector, is contracted with; of a weight
            there may be several rows, those of a step that is written for a batch.
        transpose_from: rows from which on the transpose of a weight that is contracted along its last axis is written
            as an equation of its own, so that it can be done once.
    """
    axes = contracted_axes(eqn)
    if axes is None:
        return None
    free = _free_axes(eqn, axes)
    if is_weight is None:
        matrices = [i for i in (0, 1) if free[i] and not free[1 - i]]
    else:
        matrices = [i for i in (0, 1) if free[i] and is_weight(eqn.invars[i]) and not is_weight(eqn.invars[1 - i])]
    if len(matrices) != 1:
        return None
    (matrix,) = matrices
    rows, leading = 1 - matrix, tuple(range(len(axes[matrix])))
    turns = concrete(math.prod(free[rows])) >= transpose_from and axes[matrix] != leading
    if rows == 0 and not turns:
        return None
    places = tuple(range(len(free[rows]))), tuple(range(len(free[matrix]), len(free[0]) + len(free[1])))

    def run(*operands: jax.Array) -> list[jax.Array]:
        a = jnp.moveaxis(operands[matrix], axes[matrix], leading) if turns else operands[matrix]
        of = axes[rows], leading if turns else axes[matrix]
        made = product(eqn, operands[rows], a, axes=of, swapped=rows == 1)
        return [jnp.moveaxis(made, *places) if rows == 1 else made]

    return run


def rows_of(eqn: Equation, is_weight: Callable[[Atom], bool]) -> int:
    """How many rows a weight is applied to by an equation; 1 where it is no product of a weight."""
    weights = [is_weight(atom) for atom in eqn.invars]
    if eqn.primitive.name == "conv_general_dilated" and weights == [False, True]:
        return concrete(shape_of(eqn.invars[0]).shape[eqn.params["dimension_numbers"].lhs_spec[0]])
    axes = contracted_axes(eqn)
    if axes is None or sum(weights) != 1:
        return 1
    return concrete(math.prod(_free_axes(eqn, axes)[weights.index(False)]))


def _free_axes(eqn: Equation, contracted: tuple[tuple[int, ...], tuple[int, ...]]) -> list[list[int]]:
    """The sizes of the axes of a product's operands that are not contracted."""
    shapes = [shape_of(atom).shape for atom in eqn.invars]
    return [[n for i, n in enumerate(shape) if i not in of] for shape, of in zip(shapes, contracted, strict=True)]
