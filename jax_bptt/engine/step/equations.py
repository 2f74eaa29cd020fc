"""Equations of a traced function: what each reads and makes, what is inside of it, and what may not be done to it.

The only door to JAX's jaxprs: no other module imports `jax.extend`, and only `graph` opens a jaxpr; what others read of
an equation is its name and what it reads and makes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core import jaxpr_as_fun as jaxpr_as_fun

from jax_bptt.engine.leaves import nbytes, shape_like

Equation: TypeAlias = JaxprEqn
Atom: TypeAlias = Var | Literal
"""What an equation reads, or a function returns."""

CALLED = {"jit", "pjit", "closed_call", "core_call", "eval_jaxpr"}
"""What only calls what is in it."""


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


def opened(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The equations themselves; from JAX 0.11 on the two are one class."""
    return jaxpr if isinstance(jaxpr, Jaxpr) else jaxpr.jaxpr


def inner_jaxprs(eqn: Equation) -> list[Jaxpr | ClosedJaxpr]:
    """The jaxprs among an equation's params."""

    def is_jaxpr(value: Any) -> bool:
        return isinstance(value, Jaxpr | ClosedJaxpr)

    leaves = [leaf for value in eqn.params.values() for leaf in jax.tree.leaves(value, is_leaf=is_jaxpr)]
    return [leaf for leaf in leaves if is_jaxpr(leaf)]


def inner_equations(eqn: Equation) -> list[Equation]:
    """The equations of what an equation calls."""
    return [inside for inner in inner_jaxprs(eqn) for inside in opened(inner).eqns]


def count(equations: Iterable[Equation]) -> int:
    """How many equations these are, those inside of them included."""
    return sum(1 + count(inner_equations(eqn)) for eqn in equations)


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


def keeps_shape(eqn: Equation) -> bool:
    """Whether `vmap` may not run an equation for several rows: a callback that is not to be mapped, or draws inside."""
    if eqn.primitive.name == "pure_callback" and eqn.params.get("vmap_method") is None:
        return True
    return any(makes_once(inside) or keeps_shape(inside) for inside in inner_equations(eqn))


def is_placed(eqn: Equation) -> bool:
    """Whether an equation says how its result is divided among devices.

    Not so by a sharding that divides nothing, which derivatives of products have inside a `shard_map`.
    """
    told = [eqn.params[name] for name in ("sharding", "out_sharding") if eqn.params.get(name) is not None]
    specs = [getattr(where, "spec", None) for where in told]
    return any(spec is None or any(spec) or getattr(spec, "unreduced", ()) for spec in specs)


def bind(eqn: Equation, operands: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    """The results of an equation that calls no other, of operands of other shapes, with other params."""
    with eqn.ctx.manager:
        made = eqn.primitive.bind(*operands, **params)
    return list(made) if eqn.primitive.multiple_results else [made]


def _dtype_of(atom: Atom) -> Any:
    return getattr(atom.aval, "dtype", None)


def _is_key(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
