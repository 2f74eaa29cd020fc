"""A first-order linear recurrence, solved for all time steps at once: of T steps in log T rounds.

    y_t = K_t y_{t−1} + c_t,    t = 1 … T        K_t: n × n numbers of each unit

Steps are put together in groups of `RADIX`: what a group makes of the state before it is such a step, too. So groups
are solved like steps, and the last few of them in turn; then each group's own steps are run, all side by side. Every
product is made twice, and nothing is kept of the rounds but one K and c for each group (after G. E. Blelloch, "Prefix
sums and their applications", 1990).

Zero stays zero: a product of factors that overflows does nothing to a state of zero, and one of zero to no state.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

RADIX = 4
"""Steps of a group.

(Compiled for an H100, the gradient of minGRU by hand, B = 4, H = 256, T = 512 to 4,096: of 4, 8 and 16 it had 30 to
35, 34 to 37 and 21 to 51 kernels, and took 2.6 to 2.9, 3.8 to 4.8 and 4.3 to 8.6 s to compile; `lax.associative_scan`
had 24 to 37 kernels, took 5.1 to 6.6 s, and 1.15 times the memory.)
"""

TAIL = 32
"""Steps down to which they are put together: so few are a loop, eight a body, which is compiled once."""


def solve(factors: jax.Array, constants: jax.Array, start: jax.Array, *, reverse: bool = False) -> jax.Array:
    """The state after each step, `[T, n, …]`.

    Args:
        factors: K, `[T, n, n, …]`, row by row, or `[1, n, n, …]` where it is the same at all times.
        constants: c, `[T, n, …]`.
        start: the state before the first step, `[n, …]`.
        reverse: whether the first step is the last in time.
    """
    if reverse:
        return jnp.flip(solve(jnp.flip(factors, 0), jnp.flip(constants, 0), start), 0)
    steps = constants.shape[0]
    if steps <= TAIL:
        return _in_turn(factors, constants, start)
    groups = -(-steps // RADIX)
    missing = groups * RADIX - steps

    def in_groups(a: jax.Array) -> jax.Array:
        if a.shape[0] == 1:
            return a[None]
        padded = jnp.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) if missing else a
        return padded.reshape(groups, RADIX, *a.shape[1:])

    factors, constants = in_groups(factors), in_groups(constants)
    ends = solve(*_put_together(factors, constants), start)
    states, made = jnp.concatenate([start[None], ends[:-1]]), []
    for i in range(RADIX):
        states = applied(_at(factors, i), states) + constants[:, i]
        made.append(states)
    return jnp.stack(made, 1).reshape(groups * RADIX, *constants.shape[2:])[:steps]


def _in_turn(factors: jax.Array, constants: jax.Array, start: jax.Array) -> jax.Array:
    """The state after each of a few steps."""
    factors = jnp.broadcast_to(factors, (constants.shape[0], *factors.shape[1:]))

    def step(state: jax.Array, of_step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state = applied(of_step[0][None], state[None])[0] + of_step[1]
        return state, state

    return jax.lax.scan(step, start, (factors, constants), unroll=8)[1]


def _put_together(factors: jax.Array, constants: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each group makes of the state before it, `[groups, …]`."""
    together, constant = _at(factors, 0), constants[:, 0]
    for i in range(1, RADIX):
        K = _at(factors, i)
        terms = [_times(K[:, :, k, None], together[:, None, k]) for k in range(K.shape[2])]
        together, constant = functools.reduce(operator.add, terms), applied(K, constant) + constants[:, i]
    return together, constant


def _at(factors: jax.Array, i: int) -> jax.Array:
    """The i-th step of all groups; the only one where all are the same."""
    return factors[:, min(i, factors.shape[1] - 1)]


def applied(factors: jax.Array, states: jax.Array) -> jax.Array:
    """K y, of `[…, n, n, …]` and `[…, n, …]` behind one axis."""
    terms = [_times(factors[:, :, k], states[:, None, k]) for k in range(factors.shape[2])]
    return functools.reduce(operator.add, terms)


@jax.custom_jvp
def _times(factor: jax.Array, state: jax.Array) -> jax.Array:
    """Their product; 0 where one of them is, though the other is infinite. Its derivative is that of a product."""
    made = factor * state
    return jnp.where((factor == 0) | (state == 0), jnp.zeros_like(made), made)


@_times.defjvp
def _push_times(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
    (factor, state), (factor_dot, state_dot) = primals, tangents
    return _times(factor, state), factor_dot * state + factor * state_dot
