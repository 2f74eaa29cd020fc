"""A first-order linear recurrence, solved for all time steps at once: of T steps in log T rounds.

    y_t = K_t y_{t−1} + c_t,    t = 1 … T        K_t: n × n numbers of each unit

Steps are put together in groups of `RADIX`: what a group makes of the state before it is such a step, too. So groups
are solved like steps, up to few of them; then each group's own steps are run, all side by side. Every product is made
twice, and nothing is kept of the rounds but one K and c for each group (after G. E. Blelloch, "Prefix sums and
their applications", 1990).

Zero stays zero: a product of factors that overflows does nothing to a state of zero, and one of zero to no state.
"""

import functools
import operator

import jax
import jax.numpy as jnp

RADIX = 4
"""Steps of a group.

(Compiled for an H100, the gradient of minGRU, B = 4, H = 256, T = 512 to 4,096: of 4, 8 and 16 it had 30 to 35, 34 to
37 and 21 to 51 kernels, and took 2.6 to 2.9, 3.8 to 4.8 and 4.3 to 8.6 s to compile; `lax.associative_scan` had 24 to
37 kernels, took 5.1 to 6.6 s, and 1.15 times the memory.)
"""


def solve(factors: jax.Array, constants: jax.Array, start: jax.Array, *, reverse: bool = False) -> jax.Array:
    """The state after each step, `[T, n, …]`.

    Args:
        factors: K, `[T, n, n, …]`, row by row, or `[1, n, n, …]` where it is the same at all times.
        constants: c, `[T, n, …]`.
        start: the state before the first step, `[n, …]`.
        reverse: whether the first step is the last in time.
    """
    steps = constants.shape[0]
    if steps <= RADIX:
        return _run(factors[None], constants[None], start[None], reverse)[0]
    groups = -(-steps // RADIX)
    missing = groups * RADIX - steps
    ahead, behind = (missing, 0) if reverse else (0, missing)  # of what comes last nothing is read

    def in_groups(a: jax.Array) -> jax.Array:
        if a.shape[0] == 1:
            return a[None]
        padded = jnp.pad(a, [(ahead, behind)] + [(0, 0)] * (a.ndim - 1)) if missing else a
        return padded.reshape(groups, RADIX, *a.shape[1:])

    factors, constants = in_groups(factors), in_groups(constants)
    ends = solve(*_put_together(factors, constants, reverse), start, reverse=reverse)
    before = jnp.concatenate([ends[1:], start[None]] if reverse else [start[None], ends[:-1]])
    made = _run(factors, constants, before, reverse).reshape(groups * RADIX, *constants.shape[2:])
    return made[ahead : ahead + steps]


def _put_together(factors: jax.Array, constants: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """What each group makes of the state before it, `[groups, …]`."""
    first, *others = _order(constants, reverse)
    together, constant = _at(factors, first), constants[:, first]
    for i in others:
        K = _at(factors, i)
        terms = [_times(K[:, :, k, None], together[:, None, k]) for k in range(K.shape[2])]
        together, constant = functools.reduce(operator.add, terms), applied(K, constant) + constants[:, i]
    return together, constant


def _run(factors: jax.Array, constants: jax.Array, states: jax.Array, reverse: bool) -> jax.Array:
    """The state after each step of each group, `[groups, steps, …]`."""
    made = []
    for i in _order(constants, reverse):
        states = applied(_at(factors, i), states) + constants[:, i]
        made.append(states)
    return jnp.stack(made[::-1] if reverse else made, 1)


def _order(constants: jax.Array, reverse: bool) -> range:
    steps = constants.shape[1]
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _at(factors: jax.Array, i: int) -> jax.Array:
    """The i-th step of all groups; the only one where all are the same."""
    return factors[:, min(i, factors.shape[1] - 1)]


def applied(factors: jax.Array, states: jax.Array) -> jax.Array:
    """K y, of `[…, n, n, …]` and `[…, n, …]` behind one axis."""
    terms = [_times(factors[:, :, k], states[:, None, k]) for k in range(factors.shape[2])]
    return functools.reduce(operator.add, terms)


def _times(factor: jax.Array, state: jax.Array) -> jax.Array:
    """Their product; 0 where one of them is, though the other is infinite."""
    dropped = (state == 0) & ~jnp.isfinite(factor)
    kept = (factor == 0) & ~jnp.isfinite(state)
    return jnp.where(dropped, jnp.zeros_like(factor), factor) * jnp.where(kept, jnp.zeros_like(state), state)
