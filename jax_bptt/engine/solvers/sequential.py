"""A loop over the time steps of a window, several of them in a body where a platform launches each body."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.model import PyTree


def scan_steps(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    timed: PyTree,
    size: int,
    *,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[Any, PyTree]:
    """`lax.scan` over so many steps, which may be symbolic, then one a body, of a pytree that may be without leaves."""
    if isinstance(size, int):
        return jax.lax.scan(body, carry, timed, length=size, reverse=reverse, unroll=unroll)
    numbered = jnp.arange(size), timed
    return jax.lax.scan(lambda carry, step: body(carry, step[1]), carry, numbered, reverse=reverse)
