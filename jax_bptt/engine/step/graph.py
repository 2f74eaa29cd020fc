"""Graphs: functions as JAX traced them, what in them depends on what, and functions made of a part of their equations.

    graph = trace(function, *arguments)
    run   = extract(graph, inputs, outputs)        the function between them, of the equations that it takes
    interpret(graph, known, outputs, replace)      evaluated one by one, some equations in another way

The only door to JAX's jaxprs: no other module imports `jax.extend` or opens a jaxpr; what others read of an equation is
its name and what it reads and makes. What is not known of one is left as it is: a product with params that are not
known is not rewritten.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from jax_bptt.engine.leaves import concrete, nbytes, shape_like

Equation: TypeAlias = JaxprEqn
Atom: TypeAlias = Var | Literal
"""What an equation reads, or a function returns."""

# Of an equation, and the values that it reads, its results, or the function to them; None leaves it as it is.
Replace = Callable[[Equation, list[Any]], Sequence[Any] | None]
Rewrite = Callable[[Equation], Callable[..., Sequence[Any]] | None]

CALLED = {"jit", "pjit", "closed_call", "core_call", "eval_jaxpr"}
"""What only calls what is in it."""


class Graph(NamedTuple):
    """A traced function of flat arguments."""

    inputs: list[Var]
    outputs: list[Atom]
    equations: list[Equation]
    constants: dict[Var, Any]  # what it closes over
    structure: Any  # the tree of what it returns
    whole: Jaxpr


def trace(function: Callable, *arguments: Any) -> Graph:
    """The graph of `function`, with what it merely calls inlined.

    Products of a matrix with a vector become those of the vector with the matrix, which is the same of one example; of
    many, their rows come first then as everything else has them, and nothing is transposed.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = _graph(closed, jax.tree.structure(shapes))
    return retrace(graph, _inlined) if any(map(_inlined, graph.equations)) else graph


def retrace(graph: Graph, rewrite: Rewrite) -> Graph:
    """The graph with equations written as `rewrite` has them."""
    closed = jax.make_jaxpr(lambda *operands: _run(graph, rewrite, *operands))(*map(shape_of, graph.inputs))
    return _graph(closed, graph.structure)


def without_repeats(graph: Graph) -> Graph:
    """The graph in which of equations that make the same of the same only the first is left."""
    first: dict[Any, Equation] = {}
    same: dict[Var, Var] = {}

    def renamed(atoms: Sequence[Atom]) -> list[Atom]:
        return [same.get(atom, atom) if isinstance(atom, Var) else atom for atom in atoms]

    equations = []
    for old in graph.equations:
        eqn = old.replace(invars=renamed(old.invars))
        read = tuple(a if isinstance(a, Var) else (np.asarray(a.val).tobytes(), a.aval) for a in eqn.invars)
        key = eqn.primitive, read, tuple(sorted(eqn.params.items())), tuple(v.aval for v in results(eqn)), eqn.ctx
        try:
            earlier = eqn if makes_once(eqn) else first.setdefault(key, eqn)
        except TypeError:  # what cannot be compared
            earlier = eqn
        if earlier is not eqn and len(results(earlier)) == len(eqn.outvars):
            same.update(zip(eqn.outvars, earlier.outvars, strict=True))
        else:
            equations.append(eqn)
    outputs = renamed(graph.outputs)
    whole = graph.whole.replace(eqns=equations, outvars=outputs)
    return graph._replace(outputs=outputs, equations=equations, whole=whole)


def _inlined(eqn: Equation) -> Callable[..., Sequence[Any]] | None:
    if eqn.primitive.name not in CALLED:
        return rows_first(eqn)
    inner = _graph(_inner(eqn)[0])
    return lambda *operands: _run(inner, _inlined, *operands)


def _run(graph: Graph, rewrite: Rewrite, *operands: Any) -> list[Any]:
    known = dict(zip(graph.inputs, operands, strict=True))
    return interpret(graph, known, graph.outputs, lambda eqn, of: (run := rewrite(eqn)) and run(*of), effects=True)


def _graph(jaxpr: Jaxpr | ClosedJaxpr, structure: Any = None) -> Graph:
    whole = _open(jaxpr)
    constants = dict(zip(whole.constvars, getattr(jaxpr, "consts", ()), strict=True))
    return Graph(list(whole.invars), list(whole.outvars), list(whole.eqns), constants, structure, whole)


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The equations themselves; from JAX 0.11 on the two are one class."""
    return jaxpr if isinstance(jaxpr, Jaxpr) else jaxpr.jaxpr


def _inner(eqn: Equation) -> list[Jaxpr | ClosedJaxpr]:
    """The jaxprs among an equation's params."""

    def is_jaxpr(value: Any) -> bool:
        return isinstance(value, Jaxpr | ClosedJaxpr)

    leaves = [leaf for value in eqn.params.values() for leaf in jax.tree.leaves(value, is_leaf=is_jaxpr)]
    return [leaf for leaf in leaves if is_jaxpr(leaf)]


def inner_equations(eqn: Equation) -> list[Equation]:
    """The equations of what an equation calls."""
    return [inside for inner in _inner(eqn) for inside in _open(inner).eqns]


def count(equations: Iterable[Equation]) -> int:
    """How many equations these are, those inside of them included."""
    return sum(1 + sum(count(_open(inner).eqns) for inner in _inner(eqn)) for eqn in equations)


# What depends on what.


def dependence(graph: Graph, groups: Sequence[Sequence[Var]], once: int = -1) -> dict[Var, int]:
    """For each variable the last group of inputs that it depends on; -1 where it depends on nothing.

    Closed-over arrays count as the first group. What may be made but once (`makes_once`) counts as the group `once`,
    whatever its inputs are, but for what is drawn of the first one.
    """
    level = dict.fromkeys(graph.constants, 0) | {v: k for k, group in enumerate(groups) for v in group}

    def level_of(atom: Atom) -> int:
        if isinstance(atom, Literal):
            return 0 if np.ndim(atom.val) else -1
        return level[atom]

    for eqn in graph.equations:
        known = max(map(level_of, eqn.invars), default=-1)
        if has_side_effects(eqn) or (known > 0 and makes_once(eqn)):
            known = max(known, once % len(groups))
        level.update((v, known) for v in eqn.outvars)
    return level


def has_level(level: Mapping[Var, int], wanted: int, atom: Atom) -> bool:
    """Whether an atom is a variable that depends on that group, and on none after it."""
    return isinstance(atom, Var) and level[atom] == wanted


def backward_slice(
    graph: Graph, outputs: Iterable[Atom], known: Callable[[Var], bool], effects: bool = False
) -> tuple[list[Equation], list[Var]]:
    """The equations that compute `outputs` from what is known, with all effects if asked, and the variables met."""
    met = dict.fromkeys(variables(outputs))
    eqns = []
    for eqn in reversed(graph.equations):
        if any(v in met and not known(v) for v in eqn.outvars) or (effects and has_side_effects(eqn)):
            eqns.append(eqn)
            met.update(dict.fromkeys(variables(eqn.invars)))
    return eqns[::-1], list(met)


def frontier(graph: Graph, outputs: Iterable[Atom], known: Callable[[Var], bool], effects: bool = False) -> list[Var]:
    """The known variables from which `outputs` are computed."""
    return [v for v in backward_slice(graph, outputs, known, effects)[1] if known(v)]


def reads(function: Callable, *arguments: Any) -> list[bool]:
    """Of each leaf of the arguments whether the function depends on it."""
    graph = trace(function, *arguments)
    met = set(backward_slice(graph, graph.outputs, lambda _: False)[1])
    return [v in met for v in graph.inputs]


def origins(graph: Graph, among: Sequence[Var]) -> dict[Var, frozenset[int]]:
    """For each variable the places of those among these that it is computed from, of which each is its own origin."""
    found = dict.fromkeys([*graph.constants, *graph.inputs], frozenset[int]())
    found |= {v: frozenset([i]) for i, v in enumerate(among)}
    for eqn in graph.equations:
        of = frozenset[int]().union(*(found[v] for v in variables(eqn.invars)))
        for v in eqn.outvars:
            found.setdefault(v, of)
    return found


def variables(atoms: Iterable[Atom]) -> list[Var]:
    """Those of the atoms that are variables, and not literals."""
    return [atom for atom in atoms if isinstance(atom, Var)]


def results(eqn: Equation) -> list[Var]:
    """The variables that an equation defines, without those that are of no use, which are of a type of their own."""
    return [v for v in eqn.outvars if type(v) is Var]


def shape_of(atom: Atom) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a variable or literal."""
    return shape_like(atom.aval)


def bytes_of(atom: Atom) -> int:
    """The size of a variable's value."""
    return nbytes(shape_of(atom))


# What may be made but once.


def has_side_effects(eqn: Equation) -> bool:
    """Whether an equation does something beside computing its results; to read a named axis is no such thing."""
    return any(type(effect).__name__ != "NamedAxisEffect" for effect in eqn.effects)


def makes_once(eqn: Equation) -> bool:
    """Whether an equation's results may not be made again: those of side effects, and what is drawn for a whole batch.

    The bits drawn with keys of "rbg" and "unsafe_rbg" are others under a `vmap` of another size.
    """
    if has_side_effects(eqn) or eqn.primitive.name in ("rng_bit_generator", "rng_uniform"):
        return True
    keys = {str(kind) for kind in map(_dtype_of, (*eqn.invars, *eqn.outvars)) if _is_key(kind)} - {"key<fry>"}
    alike = {"random_wrap", "random_unwrap", "random_clone", "random_seed"}
    if keys <= {"key<rbg>"}:
        alike |= {"random_split", "random_fold_in"}  # by threefry
    return bool(keys) and eqn.primitive.name.startswith("random_") and eqn.primitive.name not in alike


def is_fixed(graph: Graph, atom: Atom) -> bool:
    """Whether a value may be made but once and has no derivative: as a result of side effects, or of its type."""
    made = next((eqn for eqn in graph.equations if isinstance(atom, Var) and atom in eqn.outvars), None)
    if made is None or not makes_once(made):
        return False
    return has_side_effects(made) or not jnp.issubdtype(shape_of(atom).dtype, jnp.inexact)


def keeps_shape(eqn: Equation) -> bool:
    """Whether `vmap` may not run an equation for several rows: a callback that is not to be mapped, or draws inside."""
    if eqn.primitive.name == "pure_callback" and eqn.params.get("vmap_method") is None:
        return True
    inside = [e for inner in _inner(eqn) for e in _open(inner).eqns]
    return any(makes_once(e) or keeps_shape(e) for e in inside)


def _dtype_of(atom: Atom) -> Any:
    return getattr(atom.aval, "dtype", None)


def _is_key(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


# Functions made of a graph.


def close(function: Callable, *arguments: Any) -> tuple[Callable, list[Any]]:
    """`pure(constants, *arguments)` that computes what the function does but closes over nothing, and the constants.

    What is constant is all that the function closes over, tracers included, in their order.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph, structure = _graph(closed), jax.tree.structure(shapes)
    constants = [jnp.asarray(constant) for constant in graph.constants.values()]
    run = _function(graph, [*graph.constants, *graph.inputs], graph.outputs, graph.equations)
    return lambda known, *given: jax.tree.unflatten(structure, run(*known, *jax.tree.leaves(given))), constants


def extract(graph: Graph, inputs: Sequence[Var], outputs: Sequence[Atom], effects: bool = False) -> Callable:
    """The function from `inputs` to `outputs`, made of the equations that it takes and no others."""
    eqns, met = backward_slice(graph, outputs, {*inputs, *graph.constants}.__contains__, effects)
    read = set(met) - set(inputs)
    constants = {v: c for v, c in graph.constants.items() if v in read}
    run = _function(graph, [*constants, *inputs], outputs, eqns)
    return lambda *values: run(*constants.values(), *values)


def _function(graph: Graph, inputs: Sequence[Var], outputs: Sequence[Atom], eqns: list[Equation]) -> Callable:
    part = graph.whole.replace(
        constvars=[],
        invars=list(inputs),
        outvars=list(outputs),
        eqns=eqns,
        debug_info=graph.whole.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(part, []))


def first_index(groups: Sequence[Sequence[Any]], values: Sequence[Sequence[Any]]) -> dict[Var, Any]:
    """The value of each variable, where one that is in several places has that of the first."""
    pairs = [pair for group, of_group in zip(groups, values, strict=True) for pair in zip(group, of_group, strict=True)]
    return {atom: value for atom, value in reversed(pairs) if isinstance(atom, Var)}


def extract_grouped(
    graph: Graph, groups: Sequence[Sequence[Atom]], outputs: Sequence[Atom], effects: bool = False
) -> Callable[..., list[Any]]:
    """As `extract`, of lists of values, one for each group. What is in several places is read in the first."""
    places = first_index(groups, [[(i, j) for j in range(len(group))] for i, group in enumerate(groups)])
    run = extract(graph, list(places), outputs, effects)
    return lambda *values: run(*(values[i][j] for i, j in places.values()))


def reuse(function: Callable, arguments: Sequence[Any], known: Any) -> Any:
    """`function(*arguments)[0]`, with the values that it returns as `[1]` taken as known and not computed again."""
    graph, leaves = trace(function, *arguments), jax.tree.leaves(known)
    n = len(graph.outputs) - len(leaves)
    run = extract_grouped(graph, [graph.outputs[n:], graph.inputs], graph.outputs[:n])
    return jax.tree.unflatten(graph.structure.children()[0], run(leaves, jax.tree.leaves(arguments)))


def interpret(
    graph: Graph, known: Mapping[Var, Any], outputs: Sequence[Atom], replace: Replace, effects: bool = False
) -> list[Any]:
    """The values of `outputs`, equation by equation, each as it is or as `replace` computes it.

    Args:
        known: values to begin with, those of the inputs as a rule; what an operation makes of values that are no
            arrays is for `replace` to say.
    """
    values = graph.constants | dict(known)

    def value(atom: Atom) -> Any:
        # A literal becomes an array of its own type: a bare Python number would take the type of its neighbour.
        return np.asarray(atom.val, jnp.result_type(atom.aval)) if isinstance(atom, Literal) else values[atom]

    for eqn in backward_slice(graph, outputs, values.__contains__, effects)[0]:
        operands = [value(atom) for atom in eqn.invars]
        replaced = replace(eqn, operands)
        made = evaluate(graph, eqn, operands) if replaced is None else replaced
        values.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in outputs]


def evaluate(graph: Graph, eqn: Equation, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation, None in place of those that are of no use."""
    read = first_index([eqn.invars], [operands])
    made = iter(_function(graph, list(read), results(eqn), [eqn])(*read.values()))
    return [next(made) if type(v) is Var else None for v in eqn.outvars]


def bind(eqn: Equation, operands: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    """The results of an equation that calls no other, of operands of other shapes, with other params."""
    with eqn.ctx.manager:
        made = eqn.primitive.bind(*operands, **params)
    return list(made) if eqn.primitive.multiple_results else [made]


# Products.


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


def is_placed(eqn: Equation) -> bool:
    """Whether an equation says how its result is divided among devices.

    Not so by a sharding that divides nothing, which derivatives of products have inside a `shard_map`.
    """
    told = [eqn.params[name] for name in ("sharding", "out_sharding") if eqn.params.get(name) is not None]
    specs = [getattr(where, "spec", None) for where in told]
    return any(spec is None or any(spec) or getattr(spec, "unreduced", ()) for spec in specs)


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
