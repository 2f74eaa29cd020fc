"""What is checked of one tree by itself: that its leaves are arrays, of which kind, and like those of another tree.

Every message names the leaf, by its path in the argument, what was found and what was expected.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_bptt.checks.options import describe

ARGUMENTS = ("params", "state", "xs")
"""Those that can be differentiated, in the order in which `argnums` counts them."""


def arrays(name: str, tree: Any) -> Any:
    """The tree with JAX arrays for its leaves."""

    def array(path, leaf):
        try:
            if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
                return jnp.asarray(leaf)
        except TypeError:  # a NumPy array of objects
            pass
        found = f"no more than {leaf}" if isinstance(leaf, jax.ShapeDtypeStruct) else describe(leaf)
        raise TypeError(f"{path_of(name, path)}: found {found}, expected an array")

    return jax.tree_util.tree_map_with_path(array, tree)


def path_of(name: str, path: Any) -> str:
    """Where a leaf is, for a message."""
    return name + jax.tree_util.keystr(path)


def check_key(key: Any) -> jax.Array:
    """That it is one PRNG key."""
    try:
        jax.eval_shape(jax.random.split, key)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key: found {describe(key)}, expected one of jax.random.key") from error
    return key


def check_batched(state: Any) -> int:
    """That a state has arrays of `[B, …]`; returns B."""
    leaves = jax.tree.leaves(state)
    if not leaves or any(leaf.ndim == 0 or len(leaf) != len(leaves[0]) for leaf in leaves):
        raise ValueError(f"state: found {jax.tree.map(jnp.shape, state)}, expected arrays of [B, …]")
    return len(leaves[0])


def check_differentiable(name: str, tree: Any) -> None:
    """That the gradient with respect to an argument can be asked for."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"argnums: found {ARGUMENTS.index(name)}, which asks for the gradient with respect to {name}, but "
                f"{path_of(name, path)} has dtype {leaf.dtype}; expected floating-point (or complex) arrays only"
            )


def check_automatic(name: str, tree: Any) -> None:
    """That arrays are divided among devices along automatic axes of a mesh only: the passes say nothing of others."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        explicit = [axis for axis in jax.typeof(leaf).sharding.spec if axis is not None]
        if explicit:
            raise ValueError(
                f"{path_of(name, path)}: found an array divided along explicit mesh axes {explicit}, expected "
                "automatic ones: those of a mesh with axis_types of jax.sharding.AxisType.Auto, or inside "
                "jax.sharding.auto_axes"
            )


def check_like(found: Any, expected: Any, subject: Callable[[Any], str], as_where: str) -> None:
    """The same structure, shapes and dtypes. `subject` begins the message, of the leaf at a path or, None, of all."""
    structures = jax.tree.structure(found), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        raise TypeError(f"{subject(None)} structure {structures[0]}, expected the structure {structures[1]} {as_where}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, leaf), like in pairs:
        if leaf.shape != like.shape:
            raise ValueError(f"{subject(path)} shape {leaf.shape}, expected {like.shape} {as_where}")
        if leaf.dtype != like.dtype:
            raise TypeError(f"{subject(path)} dtype {leaf.dtype}, expected {like.dtype} {as_where}")


def check_finite(states: Any) -> None:
    """States of `[T, B, …]`, where their values are known: outside of `jax.jit`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(states):
        if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        wrong = ~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"{path_of('state', path)}: found NaN or infinity after step {int(wrong.argmax()) + 1} of {len(leaf)}, "
                "expected finite states"
            )
