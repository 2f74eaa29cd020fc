"""Complex leaves as pairs of real ones, along an axis of its own, the last: so no derivative need be holomorphic."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.engine.call import Call, shapes_of_one
from jax_bptt.engine.leaves import Leaves
from jax_bptt.model import PyTree

Step = Callable[[Leaves, Leaves, PyTree], tuple[Leaves, PyTree]]
"""`step(params, state, x) -> (state, output)` of one example, of real leaves."""


def real_shapes(call: Call) -> tuple[Leaves, Leaves, PyTree]:
    """What the step of a call over real leaves is called with."""
    params, state, x = shapes_of_one(call)
    of_params, of_state = ([jax.eval_shape(to_real, a) for a in jax.tree.leaves(tree)] for tree in (params, state))
    return of_params, of_state, x


def in_real_numbers(call: Call) -> Step:
    """The step of a call over flat real leaves of params and state."""
    shapes = call.params, call.state

    def step(params: Leaves, state: Leaves, x: PyTree) -> tuple[Leaves, PyTree]:
        whole = []
        for leaves, tree in zip((params, state), shapes, strict=True):
            like, structure = jax.tree.flatten(tree)
            pairs = zip(leaves, like, strict=True)
            whole.append(jax.tree.unflatten(structure, [from_real(a, b) for a, b in pairs]))
        after, output = call.step(whole[0], whole[1], x)
        return [to_real(a) for a in jax.tree.leaves(after)], output

    return step


def to_real(leaf: jax.Array) -> jax.Array:
    """A leaf in its real coordinates."""
    return jnp.stack([leaf.real, leaf.imag], -1) if _is_complex(leaf) else leaf


def from_real(leaf: jax.Array, like: Any) -> jax.Array:
    """A leaf of its real coordinates."""
    return jax.lax.complex(leaf[..., 0], leaf[..., 1]) if _is_complex(like) else leaf


def gradient_from_real(bar: jax.Array, param: jax.Array) -> jax.Array:
    """The gradient of a param of that of its real coordinates: of a complex one, as JAX has it, ∂/∂Re − i ∂/∂Im."""
    made = jax.lax.complex(bar[..., 0], -bar[..., 1]) if _is_complex(param) else bar
    return made.astype(param.dtype)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)
