"""From a gradient to new params: what training changes, and one update of it.

    (loss, carry), grads = gradient(params, carry, xs, targets)
    updates, opt_state   = optimizer.update(grads, opt_state, params)
    params               = params + updates

`train_step` does this once per chunk, with any gradient function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jax_bptt.checks.options import describe
from jax_bptt.checks.trees import arrays
from jax_bptt.model import GradientFunction, PyTree


class TrainState(NamedTuple):
    """All that training changes."""

    params: PyTree
    opt_state: optax.OptState
    carry: PyTree
    """The recurrent state at the end of what was read, of `[B, …]`; a `Stream`, for online training with k2 > k1, a
    `DrawnStream` where it is drawn how far back an update goes, an `Adaptive` where the horizon adapts; or what a
    gradient that is carried forwards in time hands on."""
    step: jax.Array  # how many updates there were, those that were skipped included; an int32 scalar


class Metrics(NamedTuple):
    """What there is to tell of an update; each a scalar, or `[number of updates]` of online training."""

    loss: jax.Array  # of the chunk or window, before the update, as the gradient function reduces it
    gradient_norm: jax.Array  # global norm of the gradient, before any clipping
    update_norm: jax.Array  # global norm of what was added to the params
    finite: jax.Array  # whether loss, gradient and update were finite, all of them
    skipped: jax.Array  # 1 where the update was left out because they were not, else 0; sum it up to count


class Steps(NamedTuple):
    """Some steps of a stream."""

    xs: PyTree  # [R, B, …]
    targets: PyTree  # [R, B, …]
    mask: jax.Array | None  # [R, B]
    reset: jax.Array | None  # [R, B] of booleans


class Stream(NamedTuple):
    """The end of what online training has read of a stream, as far as its next window reaches back."""

    state: PyTree  # the state before the steps kept here, [B, …]: where the next window, or its burn-in, begins
    read: jax.Array  # how many of the steps kept here are of the stream: all R, but at its beginning; an int32 scalar
    kept: Steps


class DrawnStream(NamedTuple):
    """What of a stream the next update may go back over: R windows of k1 steps, the next one included."""

    states: PyTree  # before each of the R − 1 windows kept, and before the next: [R, B, …]
    read: jax.Array  # how many of the windows kept are of the stream: all R − 1, but at its beginning; an int32 scalar
    kept: Steps  # [(R − 1)·k1, B, …]
    key: jax.Array


class Adaptive(NamedTuple):
    """What adaptive truncation hands on from chunk to chunk."""

    state: PyTree  # the recurrent state at the end of what was read, [B, …]
    horizon: jax.Array  # that is trained with, in steps; an int32 scalar
    bias: jax.Array  # b of each of the horizons, as it was estimated last, [n]


OF_STREAMS = (Stream, DrawnStream, Adaptive)
"""Carries that hold more than a recurrent state, each for one way of training."""


class Update(Protocol):
    """One or several updates of what training changes."""

    def __call__(
        self, train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        """Of a chunk, xs and targets of `[T, B, …]`, with mask and reset as the gradient functions have them."""
        ...


class Online(NamedTuple):
    """Online training, as a pair like those of optax: `init` makes what `update` changes."""

    init: Callable[..., TrainState]  # init(params, state, xs=None, targets=None, key=None)
    update: Update


def init(params: PyTree, optimizer: optax.GradientTransformation, carry: PyTree) -> TrainState:
    """The state that training with `train_step` begins with.

    Its arrays are copies, so that a jitted update may be given them for good (`donate_argnums=0`).

    Args:
        params, carry: where training begins; the recurrent state is of `[B, …]`.
        optimizer: of optax.

    Raises:
        TypeError: if the optimiser is not one of optax.
    """
    check_optimizer(optimizer)
    params, carry = jax.tree.map(lambda a: jnp.array(a, copy=True), (arrays("params", params), arrays("carry", carry)))
    return TrainState(params, optimizer.init(params), carry, jnp.zeros((), jnp.int32))


def train_step(
    gradient: GradientFunction, optimizer: optax.GradientTransformation, *, skip_nonfinite: bool = False
) -> Update:
    """One update per chunk, the state carried on.

        θ ← θ + optimizer(∂L/∂θ),    h_0 ← h_T

    The optimiser gets the conjugate of the gradient of complex params: that of a real loss is, as JAX has it, the
    conjugate of the direction of steepest ascent.

    Args:
        gradient: any gradient function of the library with respect to the params (`argnums=0`), or another one called
            like `jax.value_and_grad(…, has_aux=True)`: `(params, carry, xs, targets, …) -> ((loss, carry), grads)`.
            What is the same of all chunks, a `length` or a `reset_state`, is given to it by `functools.partial`.
        optimizer: of optax.
        skip_nonfinite: leave out an update where loss, gradient or update is not finite. Params and optimiser state
            stay as they are, and the state carried on is that from before the chunk if the new one is not finite.

    Returns:
        `update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`, with xs, targets, mask
        and reset as the gradient function has them. Pure, and not jitted. Where `train_state` is donated, begin anew by
        `train_state._replace(carry=…)` with a state that is made for it: one that is kept would be gone, too.

    Raises:
        TypeError: if the optimiser is not one of optax, or `gradient` is no function.
    """
    check_optimizer(optimizer)
    if not callable(gradient):
        raise TypeError(f"gradient: found {describe(gradient)}, expected a function, such as jax_bptt.bptt makes")

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        if isinstance(train_state.carry, OF_STREAMS):
            found, of = (
                type(train_state.carry).__name__,
                "adaptively" if isinstance(train_state.carry, Adaptive) else "online",
            )
            raise TypeError(f"train_state.carry: found a {found}, which is for train_{of}, expected a recurrent state")
        given = {name: value for name, value in (("mask", mask), ("reset", reset)) if value is not None}
        (loss, carry), grads = gradient(train_state.params, train_state.carry, xs, targets, **given)
        found, expected = jax.tree.structure(grads), jax.tree.structure(train_state.params)
        if found != expected:
            raise TypeError(
                f"gradient: found one that returns a gradient of structure {found}, expected {expected} as in the "
                "params: build it with argnums=0"
            )
        return updated(optimizer, skip_nonfinite, train_state, loss, carry, grads)

    return update


def updated(
    optimizer: optax.GradientTransformation,
    skip_nonfinite: bool,
    old: TrainState,
    loss: jax.Array,
    carry: PyTree,
    grads: PyTree,
) -> tuple[TrainState, Metrics]:
    """One step of the optimiser, and what there is to tell of it."""
    uphill = jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)
    updates, opt_state = optimizer.update(uphill, old.opt_state, old.params)
    params = optax.apply_updates(old.params, updates)
    finite = _all_finite((loss, grads, updates))
    skipped, update_norm = jnp.zeros((), jnp.int32), optax.tree.norm(updates)
    if skip_nonfinite:
        params, opt_state = _select(finite, (params, opt_state), (old.params, old.opt_state))
        carry = _select(finite | _all_finite(carry), carry, old.carry)
        skipped, update_norm = 1 - finite.astype(jnp.int32), jnp.where(finite, update_norm, 0)
    metrics = Metrics(loss, optax.tree.norm(grads), update_norm, finite, skipped)
    return TrainState(params, opt_state, carry, old.step + 1), metrics


def _select(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _all_finite(tree: PyTree) -> jax.Array:
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all()
    return finite


def check_optimizer(optimizer: Any) -> None:
    """That it is one of optax."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer: found {describe(optimizer)}, expected one of optax, such as optax.adam(1e-3)")


def check_train_state(train_state: Any) -> None:
    """That it is what `init` returns."""
    if not isinstance(train_state, TrainState):
        raise TypeError(f"train_state: found {describe(train_state)}, expected a TrainState, such as init returns")
