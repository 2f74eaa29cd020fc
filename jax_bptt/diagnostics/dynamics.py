"""What the recurrence does to credit on its way back: the Jacobians J_t = ∂h_t/∂h_{t−1} along a trajectory.

    ‖J_t‖                                         how much one step can grow or shrink it         jacobian_norms
    lim 1/T log of the stretching of J_T ⋯ J_1    how fast many steps do                          lyapunov_exponents

States are taken as vectors, all leaves that have a derivative one after the other, n numbers in all; the rest, integers
and PRNG keys, goes along. Both walk the sequence once, forwards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.options import check_count
from jax_bptt.checks.trees import check_finite
from jax_bptt.engine.call import Call
from jax_bptt.engine.leaves import combine, differentiable
from jax_bptt.model import Model, PyTree, Step, step_of


def jacobian_norms(model: Model, *, burn_in: int = 0) -> Callable[..., jax.Array]:
    """How much a step can grow credit: the largest singular value of every Jacobian.

        ‖∂h_t/∂h_{t−1}‖₂

    Where it stays below 1, gradients vanish; to explode, it has to be above 1, but that alone is not enough.

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`; differentiable forwards.
        burn_in: the first steps only bring the state up to date.

    Returns:
        `norms(params, state, xs=None, *, length=None)`, which returns `[T, B]`, with the `length` T of a recurrence
        without inputs. It takes the Jacobian of a step, n² numbers for each example, and n derivatives forwards to
        compute it.

    Raises:
        TypeError, ValueError: for an argument that is not of this form, and, outside of `jax.jit`, for states that are
            not finite.

    Source:
        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """
    step = step_of(model)
    check_count("burn_in", burn_in, at_least=0)

    def norms(params: PyTree, state: PyTree, xs: PyTree = None, *, length: int | None = None) -> jax.Array:
        call = check_call(step, None, Arguments(params, state, xs, length=length), burn_in=burn_in)

        def of_one(state, x, directions):
            after, moved = _push(step, call.params, state, x, directions)
            return after, directions, jnp.linalg.norm(moved, 2)

        return _along(call, of_one, np.eye(_size(call.state)))[burn_in:]

    return norms


def lyapunov_exponents(model: Model, count: int | None = None, *, burn_in: int = 0) -> Callable[..., jax.Array]:
    """How fast credit grows or shrinks over many steps, in as many directions.

        λ_i = lim 1/T Σ_t log R_t,ii,    Q_t R_t = J_t Q_{t−1},  the QR decomposition

    The largest is the mean growth of credit per step, going back as of disturbances going on: λ_1 < 0, and gradients
    vanish by e^λ_1 a step, λ_1 > 0, and they explode; see `time_to_halve`.

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`; differentiable forwards.
        count: how many exponents, the largest ones; all n where None.
        burn_in: the first steps bring the state and the directions up to date and do not count.

    Returns:
        `exponents(params, state, xs=None, *, length=None)`, which returns `[B, count]`, in nats per step, the largest
        first, with the `length` T of a recurrence without inputs.

    Raises:
        TypeError, ValueError: for an argument that is not of this form, a count above n, and, outside of `jax.jit`, for
            states that are not finite.

    Source:
        G. Benettin, L. Galgani, A. Giorgilli and J.-M. Strelcyn, "Lyapunov characteristic exponents for smooth
        dynamical systems and for Hamiltonian systems; a method for computing all of them", 1980; R. Engelken, F. Wolf
        and L. F. Abbott, "Lyapunov spectra of chaotic recurrent neural networks", 2023.
    """
    step = step_of(model)
    check_count("burn_in", burn_in, at_least=0)
    if count is not None:
        check_count("count", count)

    def exponents(params: PyTree, state: PyTree, xs: PyTree = None, *, length: int | None = None) -> jax.Array:
        call = check_call(step, None, Arguments(params, state, xs, length=length), burn_in=burn_in)
        size = _size(call.state)
        if count is not None and count > size:
            raise ValueError(f"count: found {count}, expected no more than the {size} numbers of a state")

        def of_one(state, x, directions):
            after, moved = _push(step, call.params, state, x, directions)
            directions, stretched = jnp.linalg.qr(moved.T)
            return after, directions.T, jnp.log(jnp.abs(jnp.diagonal(stretched)))

        # To begin with, directions that are orthonormal and not those of any simple system.
        begin = np.linalg.qr(np.cos(np.sqrt(2) * np.outer(np.arange(1, size + 1), np.arange(1, size + 1))))[0]
        grown = _along(call, of_one, begin[: count or size])
        return -jnp.sort(-grown[burn_in:].mean(0), axis=-1)

    return exponents


def time_to_halve(rate: Any) -> jax.Array:
    """The number of steps in which credit that grows by `rate` a step halves; negative, where it doubles.

        −ln 2 / λ

    Args:
        rate: λ in nats per step: a Lyapunov exponent, or the mean of the logarithms of `jacobian_norms`; of any shape.
    """
    return -jnp.log(2.0) / jnp.asarray(rate)


def _along(call: Call, of_one: Callable, directions: np.ndarray) -> jax.Array:
    """What `of_one(state, x, directions) -> (state, directions, told)` tells of every step, `[T, B, …]`."""
    dtype = _vector(jax.tree.map(lambda a: a[0], call.state))[0].dtype
    begin = jnp.broadcast_to(jnp.asarray(directions, dtype), (*call.batch, *directions.shape))

    def step(carry, x):
        state, *rest = jax.vmap(of_one)(carry[0], x, carry[1])
        return (state, rest[0]), (state, rest[1])

    _, (states, told) = jax.lax.scan(step, (call.state, begin), call.xs, call.steps)
    check_finite(states)
    return told


def _push(step: Step, params: PyTree, state: PyTree, x: PyTree, directions: jax.Array) -> tuple[PyTree, jax.Array]:
    """The state after a step of one example, and J d for each of the directions, `[…, n]`."""
    vector, put = _vector(state)

    def after(vector):
        new, _ = step(params, put(vector), x)
        return _vector(new)[0], new

    _, push, new = jax.linearize(after, vector, has_aux=True)
    return new, jax.vmap(push)(directions)


def _vector(state: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """The leaves that have a derivative as one vector, and the state with another vector in their place."""
    leaves, structure = jax.tree.flatten(state)
    vector, unravel = jax.flatten_util.ravel_pytree(differentiable(leaves))
    return vector, lambda vector: jax.tree.unflatten(structure, combine(unravel(vector), leaves))


def _size(state: PyTree) -> int:
    """n, of a state of `[B, …]`."""
    return sum(leaf[0].size for leaf in differentiable(jax.tree.leaves(state)) if leaf is not None)
