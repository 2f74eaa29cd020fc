"""Steps whose recursion of δ, or of the state, is one of small blocks: those that can be solved for all time at once.

    δ_{t−1} = K_t δ_t + credit_{t−1},    h_t = K_tᵀ h_{t−1} + c_t        K_t: n × n numbers for each unit

The units of a block are in leaves of like shape, several of them or one with a pair's two places; with n = 1,
∂h_t/∂h_{t−1} is elementwise. The recursion of the state is such where the transition is affine in it: then
∂h_t/∂h_{t−1} does not depend on the state.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.step.equations import Equation, Var, results, shape_of
from jax_bptt.engine.step.graph import Graph, backward_slice
from jax_bptt.engine.step.primitives import is_zero
from jax_bptt.engine.step.structure import Alignment, alignments, is_own

MOST = 4
"""Numbers of a block's state: a recursion of n takes n² times the work, and as many factors to be written."""


class Block(NamedTuple):
    """Leaves of the state of like shape, whose elements have to do with those of the same unit alone."""

    leaves: tuple[int, ...]  # their places among all
    free: tuple[int, ...]  # their axes that are no axes of units
    shape: tuple[int, ...]
    pattern: tuple[tuple[bool, ...], ...]  # by leaf before, then by leaf after the step: what δ gets there at length


def blocks_of(
    graph: Graph, sources: Sequence[Var], outputs: Sequence[Any], places: Sequence[int]
) -> list[Block] | None:
    """The blocks of a linear recursion; None if it is not one of small ones.

    Args:
        graph: of the recursion of δ.
        sources: the leaves of δ after the step, among its inputs.
        outputs: those before it, in the same order.
        places: which leaves of the state they are of.
    """
    if not _is_linear(graph, sources):
        return None
    found = [alignments(graph, source, outputs) for source in sources]
    kinds = [shape_of(source) for source in sources]
    blocks = []
    for members in _components([[of is not None for of in row] for row in found]):
        shape = kinds[members[0]].shape
        if any((kinds[i].shape, kinds[i].dtype) != (shape, kinds[members[0]].dtype) for i in members):
            return None
        pairs = [found[i][j] for i in members for j in members]
        free = tuple(axis for axis in range(len(shape)) if not all(_is_own(of, axis, shape) for of in pairs))
        if not 0 < len(members) * int(np.prod([shape[axis] for axis in free])) <= MOST:
            return None
        direct = np.array([[found[i][j] is not None for i in members] for j in members]) | np.eye(
            len(members), dtype=bool
        )
        reach = np.linalg.matrix_power(direct.astype(int), len(members)) > 0
        pattern = tuple(map(tuple, reach.tolist()))
        blocks.append(Block(tuple(places[i] for i in members), free, shape, pattern))
    return blocks


def _is_own(alignment: Alignment | None, axis: int, shape: tuple[int, ...]) -> bool:
    return alignment is None or is_own(alignment, axis, shape)


def _components(coupled: list[list[bool]]) -> list[list[int]]:
    """Which have to do with each other, directly or by others."""
    groups: list[set[int]] = []
    for i, row in enumerate(coupled):
        met = {i, *(j for j, is_coupled in enumerate(row) if is_coupled)}
        meeting = [group for group in groups if group & met]
        groups = [group for group in groups if not group & met] + [met.union(*meeting)]
    return [sorted(group) for group in groups]


def _is_linear(graph: Graph, sources: Sequence[Var]) -> bool:
    """Whether all that is done to δ is known to be linear, and nothing on the way is costly or of half precision.

    A pullback that a user wrote may be anything: one that clips what comes to it is not linear.
    """
    moving, zeros = set(sources), {v for eqn in graph.equations if is_zero(eqn) for v in eqn.outvars}
    is_complex = any(jnp.issubdtype(shape_of(v).dtype, jnp.complexfloating) for v in sources)
    for eqn in graph.equations:
        places = [i for i, v in enumerate(eqn.invars) if isinstance(v, Var) and v in moving]
        if not places:
            continue
        others = [v for i, v in enumerate(eqn.invars) if i not in places]
        name = eqn.primitive.name
        known = name in _OF_PARTS and not is_complex
        if name in ("mul", "div"):
            known = _keeps_affine(eqn, places)
        elif name in _MOVING or name == "select_n":
            others = others[1:] if name == "select_n" else others
            known = _keeps_affine(eqn, places) and all(_is_zero_of(v, zeros) for v in others)
        elif known:
            known = all(_is_zero_of(v, zeros) for v in others)
        if not known or any(jnp.finfo(shape_of(v).dtype).bits < 32 for v in results(eqn)):
            return False
        moving.update(results(eqn))
    return all(jnp.finfo(shape_of(v).dtype).bits >= 32 for v in sources)


def _is_zero_of(atom: Any, zeros: set[Var]) -> bool:
    return atom in zeros if isinstance(atom, Var) else not np.any(getattr(atom, "val", 1))


def is_affine(graph: Graph, before: Sequence[Var], outputs: Sequence[Any]) -> bool:
    """Whether outputs are affine in some inputs, by operations that are known to be."""
    moving = set(before)
    for eqn in backward_slice(graph, outputs, lambda _: False)[0]:
        places = [i for i, v in enumerate(eqn.invars) if isinstance(v, Var) and v in moving]
        if places and not _keeps_affine(eqn, places):
            return False
        moving.update(results(eqn) if places else [])
    return True


_OF_PARTS = {"real", "imag", "complex", "convert_element_type", "conj"}
"""Linear of what is real alone."""
_MOVING = {"broadcast_in_dim", "transpose", "reshape", "squeeze", "rev", "slice", "split", "stack", "unstack", "pad"}
_MOVING |= {"concatenate", "add", "sub", "add_any", "neg", "copy", "reduce_sum"}


def _keeps_affine(eqn: Equation, places: list[int]) -> bool:
    match eqn.primitive.name:
        case "mul":
            return len(places) == 1
        case "div":
            return places == [0]
        case "select_n":
            return 0 not in places
        case name:
            return name in _MOVING
