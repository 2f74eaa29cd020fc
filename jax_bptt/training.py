"""Training: from a gradient to a trained network, one pure update after the other.

    (loss, carry), grads = gradient(params, carry, xs, targets)
    updates, opt_state   = optimizer.update(grads, opt_state, params)
    params               = params + updates

`train_step` does this once per chunk, with any gradient function; `train_online` every k1 steps, walking a chunk window
by window in one scan. Either makes an `update(train_state, xs, targets, *, mask=None, reset=None)` from one
`TrainState` to the next, to be jitted, scanned and donated to as the user likes. Clipping, schedules and gradient
accumulation are the optimiser's: `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))`,
`optax.MultiSteps(optimizer, 4)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_bptt import problem
from jax_bptt.bptt import backpropagate
from jax_bptt.calls import arrays, check_call, check_like
from jax_bptt.forward import read_rows, rows_of, run_window, space
from jax_bptt.model import Loss, Model, Step, step_of
from jax_bptt.options import check_count, check_options, check_truncation, describe
from jax_bptt.windows import Windows, default_size, example, scan

Update = Callable[..., tuple["TrainState", "Metrics"]]
"""`update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`."""


class TrainState(NamedTuple):
    """All that training changes."""

    params: Any
    opt_state: Any
    carry: Any
    """The recurrent state at the end of what was read, of `[B, …]`; or a `Stream`, for online training with k2 > k1."""
    step: jax.Array
    """How many updates there were, those that were skipped included; an int32 scalar."""


class Metrics(NamedTuple):
    """What there is to tell of an update; each a scalar, or `[number of updates]` of online training."""

    loss: jax.Array
    """Of the chunk or window, before the update, as the gradient function reduces it."""
    gradient_norm: jax.Array
    """Global norm of the gradient, before any clipping."""
    update_norm: jax.Array
    """Global norm of what was added to the params."""
    finite: jax.Array
    """Whether loss, gradient and update were finite, all of them."""
    skipped: jax.Array
    """1 where the update was left out because they were not, else 0; sum it up to count."""


class Stream(NamedTuple):
    """The end of what online training has read of a stream, as far as its next window reaches back."""

    state: Any
    """The state before the steps kept here, `[B, …]`: where the next window, or its burn-in, begins."""
    steps: jax.Array
    """How many of the steps kept here are of the stream: all R, but at its beginning; an int32 scalar."""
    xs: Any  # [R, B, …]
    targets: Any  # [R, B, …]
    mask: jax.Array  # [R, B]
    reset: jax.Array  # [R, B] of booleans


def init(
    params: Any,
    optimizer: optax.GradientTransformation,
    carry: Any,
    *,
    xs: Any = None,
    targets: Any = None,
    k1: int | None = None,
    k2: int | None = None,
    burn_in: int = 0,
) -> TrainState:
    """The state that training begins with.

    Its arrays are copies, so that a jitted update may be given them for good (`donate_argnums=0`).

    Args:
        params: where training begins.
        optimizer: of optax.
        carry: the recurrent state to begin with, of `[B, …]`.
        xs, targets, k1, k2, burn_in: for `train_online` where k2 + burn_in > k1, which keeps that many steps less k1 of
            the stream: a chunk, or arrays like those of one (`[T, B, …]`, of any T), and its k1, k2 and burn_in.
            Else not needed.

    Raises:
        TypeError: if the optimiser is not one of optax, or some of xs, targets, k1 and k2 are given and not all.
        ValueError: if k1, k2 or burn_in is out of range, or xs or targets have no time and batch axes.
    """
    _check_optimizer(optimizer)
    given = {"xs": xs, "targets": targets, "k1": k1, "k2": k2}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise TypeError(
            f"{', '.join(missing)}: found None, expected all of xs, targets, k1 and k2, or none of them where "
            "k2 + burn_in is no more than k1"
        )
    if not missing:
        k1, k2, _ = check_truncation(k1, k2, "all")
        kept = _steps_kept(k1, k2, check_count("burn_in", burn_in, at_least=0))
        carry = _empty_stream(carry, xs, targets, kept) if kept else carry
    params, carry = jax.tree.map(lambda a: jnp.array(a, copy=True), (params, carry))
    return TrainState(params, optimizer.init(params), carry, jnp.zeros((), jnp.int32))


def train_step(gradient: Callable, optimizer: optax.GradientTransformation, *, skip_nonfinite: bool = False) -> Update:
    """One update per chunk, the state carried on.

        θ ← θ + optimizer(∂L/∂θ),    h_0 ← h_T

    Args:
        gradient: any gradient function of the library with respect to the params (`argnums=0`), or another one called
            like `jax.value_and_grad(…, has_aux=True)`: `(params, carry, xs, targets, …) -> ((loss, carry), grads)`.
        optimizer: of optax.
        skip_nonfinite: leave out an update where loss, gradient or update is not finite. Params and optimiser state
            stay as they are, and the state carried on is that from before the chunk if the new one is not finite.

    Returns:
        `update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`, with xs, targets, mask
        and reset as the gradient function has them. Pure, and not jitted.

    Raises:
        TypeError: if the optimiser is not one of optax, or `gradient` is no function.
    """
    _check_optimizer(optimizer)
    if not callable(gradient):
        raise TypeError(f"gradient: found {describe(gradient)}, expected a function, such as jax_bptt.bptt makes")

    def update(
        train_state: TrainState, xs: Any, targets: Any, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        _check_train_state(train_state)
        if isinstance(train_state.carry, Stream):
            raise TypeError("train_state.carry: found a Stream, which is for train_online, expected a recurrent state")
        given = {name: value for name, value in (("mask", mask), ("reset", reset)) if value is not None}
        (loss, carry), grads = gradient(train_state.params, train_state.carry, xs, targets, **given)
        return _updated(optimizer, skip_nonfinite, train_state, loss, carry, grads)

    return update


def train_online(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    k1: int,
    k2: int,
    *,
    losses: str = "newest",
    reduction: str = "sum",
    burn_in: int = 0,
    save: str | None = None,
    skip_nonfinite: bool = False,
) -> Update:
    """Truncated BPTT as it is used online: an update every k1 steps, each by the gradient of one window of k2.

    A window ends at e = k1, 2·k1, …. With the params θ as they are then, and from the stored state h_s, where
    s = max(0, e − max(k1, k2 + burn_in)),

        h_t, ŷ_t = step(θ, h_{t−1}, x_t)    t = s+1 … e
        θ ← θ + optimizer(∂/∂θ Σ ℓ_t)       over the window's losses, with h_{max(0, e−k2)} held constant

    The stored state was computed with params of earlier updates; the `burn_in` steps before the window, through which
    no credit travels, freshen it. The states from s to e are those of the current params, and the one among them with
    which the next window begins is stored. Memory is O(max(k1, k2 + burn_in)), whatever the length of a chunk. For
    k1 = k2 this is a loop over chunks of k1 steps, with one update by `bptt` each.

    Chunks are pieces of one stream: a window reaches back into the chunk before, for which the carry keeps its last
    k2 + burn_in − k1 steps (see `init`).

    Args:
        model, loss, save: as for `bptt`.
        optimizer: of optax.
        k1: steps from one update to the next.
        k2: steps that a window's credit travels at most.
        losses: which a window has, as for `truncated_bptt`: "newest", the last k1; "all", those of its k2 steps;
            "last", that of its last step.
        reduction: as for `bptt`, of the losses of one window.
        burn_in: steps run before a window.
        skip_nonfinite: as for `train_step`.

    Returns:
        `update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`, with xs and targets of
        `[T, B, …]` for a multiple T of k1, and mask and reset as for `bptt`: T / k1 updates in one `lax.scan`. The
        metrics are arrays of `[T / k1]`, in order. Pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.

    Source:
        R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories", 1990; I. Sutskever, "Training recurrent neural networks", 2013, section 2.8.6.
    """
    _check_optimizer(optimizer)
    step = step_of(model)
    check_options(loss, reduction, burn_in, save)
    k1, k2, _ = check_truncation(k1, k2, losses)
    kept = _steps_kept(k1, k2, burn_in)
    without_credit = kept + k1 - k2
    counted = np.arange(kept + k1) >= {"newest": kept, "all": 0, "last": kept + k1 - 1}[losses]
    of_window = _while_live(step) if kept else step

    def gradient(params: Any, state: Any, xs: Any, targets: Any, mask: Any, reset: Any) -> Any:
        """Loss and gradient of one window, and the state after its first k1 steps."""
        call = check_call(of_window, loss, (0,), params, state, xs, targets, mask, reset, burn_in=without_credit)
        of_call = problem.problem(of_window, call, (0,), without_credit, k1)
        mark = k1 - without_credit if of_call.marked is None else None
        value, marked, weights_bar, start, _ = backpropagate(
            of_call, loss, call, reduction, None, save, lambda window: [], mark
        )
        next_state = problem.state_of(call, of_call.marked or marked)
        return (value, next_state), problem.gradients(of_call, call, 0, weights_bar, start, [])

    def after_chunk(train_state: TrainState, block: tuple[Any, Any, Any, Any]) -> tuple[TrainState, Metrics]:
        xs, targets, mask, reset = block
        if not counted.all():
            mask = jnp.where(counted[:, None], _per_step(xs, 1.0) if mask is None else mask, 0)
        (value, carry), grads = gradient(train_state.params, train_state.carry, xs, targets, mask, reset)
        return _updated(optimizer, skip_nonfinite, train_state, value, carry, grads)

    def after_window(train_state: TrainState, block: tuple[Any, Any, Any, Any]) -> tuple[TrainState, Metrics]:
        stream = train_state.carry
        steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tuple(stream[2:]), block)
        xs, targets, mask, reset = steps
        # Steps before the beginning of the stream leave the state alone, whatever their inputs are: the first ones.
        live = jnp.arange(kept + k1) >= kept - stream.steps
        inputs = jax.tree.map(lambda x: jax.vmap(jnp.where, in_axes=(0, 0, None))(live, x, x[kept]), xs)
        live = jnp.broadcast_to(live[:, None], mask.shape)
        mask = jnp.where(counted[:, None] & live, mask, 0)
        (value, state), grads = gradient(train_state.params, stream.state, (inputs, live), targets, mask, reset)
        newest = jax.tree.map(lambda a: a[k1:], steps)
        carry = Stream(state, jnp.minimum(stream.steps + k1, kept), *newest)
        return _updated(optimizer, skip_nonfinite, train_state, value, carry, grads)

    def update(
        train_state: TrainState, xs: Any, targets: Any, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        _check_train_state(train_state)
        state = _check_carry(train_state.carry, xs, targets, kept)
        call = check_call(step, loss, (0,), train_state.params, state, xs, targets, mask, reset)
        if call.steps % k1:
            raise ValueError(f"xs: found {call.steps} time steps, expected a multiple of k1 = {k1}, one update each")
        mask, reset = call.mask, call.reset
        if kept:
            mask = _per_step(call.xs, 1.0) if mask is None else mask.astype(float)
            reset = _per_step(call.xs, False) if reset is None else reset
        blocks = jax.tree.map(lambda a: a.reshape(-1, k1, *a.shape[1:]), (call.xs, call.targets, mask, reset))
        return jax.lax.scan(after_window if kept else after_chunk, train_state, blocks)

    return update


def evaluate(
    model: Model, loss: Loss, *, reduction: str = "mean", window: int | None = None
) -> Callable[..., tuple[jax.Array, Any]]:
    """The loss of a long sequence, in the memory of one window, whatever its length.

        L = Σ_t mask_t·ℓ(ŷ_t, y_t),    h_t, ŷ_t = step(θ, h_{t−1}, x_t)

    Args:
        model: as for `bptt`.
        loss: as for `bptt`, or any other number to tell of a step, such as whether the most likely label is right.
        reduction: as for `bptt`; here the mean is the default.
        window: steps that are projected, read out and compared with their targets at once; chosen by
            `jax_bptt.windows.default_size` where None.

    Returns:
        `evaluate(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> (loss, state)`; the state is
        that after the last step. Pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.
    """
    step = step_of(model)
    check_options(loss, reduction, 0)
    if window is not None:
        check_count("window", window)

    def evaluated(
        params: Any, state: Any, xs: Any, targets: Any, mask: Any = None, reset: Any = None, reset_state: Any = None
    ) -> tuple[jax.Array, Any]:
        call = check_call(step, loss, (), params, state, xs, targets, mask, reset, reset_state)
        of_call = problem.problem(step, call, (), 0)
        recurrence = of_call.recurrence
        objective = problem.objective(of_call, loss, call.loss_dtype, reduction, np.ones(of_call.steps, int))

        def body(carry: Any, timed: Any, _: Any) -> tuple[Any, None]:
            (start, total), (x, targets, mask) = carry, timed
            into = space(recurrence, start, x, "states")
            end, steps = run_window(recurrence, start, x, into, effects=True)
            outputs = read_rows(recurrence, rows_of(start, steps, x))
            losses, _ = objective.pull(outputs, targets, mask, 2)
            return (end, total + losses.sum()), None

        size = window or default_size(of_call.steps, of_call.batch, "states")
        windows = Windows(of_call.steps, min(of_call.steps, size))
        start = of_call.state, jnp.zeros((), objective.dtype)
        (end, total), _ = scan(body, start, (of_call.xs, objective.targets, objective.mask), windows)
        return total.astype(call.loss_dtype), problem.state_of(call, end)

    return evaluated


def _updated(
    optimizer: optax.GradientTransformation,
    skip_nonfinite: bool,
    old: TrainState,
    loss: jax.Array,
    carry: Any,
    grads: Any,
) -> tuple[TrainState, Metrics]:
    """One step of the optimiser, and what there is to tell of it."""
    updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
    params = optax.apply_updates(old.params, updates)
    finite = _all_finite((loss, grads, updates))
    skipped, update_norm = jnp.zeros((), jnp.int32), optax.tree.norm(updates)
    if skip_nonfinite:
        params, opt_state = _select(finite, (params, opt_state), (old.params, old.opt_state))
        carry = _select(finite | _all_finite(carry), carry, old.carry)
        skipped, update_norm = 1 - finite.astype(jnp.int32), jnp.where(finite, update_norm, 0)
    metrics = Metrics(loss, optax.tree.norm(grads), update_norm, finite, skipped)
    return TrainState(params, opt_state, carry, old.step + 1), metrics


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _all_finite(tree: Any) -> jax.Array:
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.isfinite(leaf).all()
    return finite


def _steps_kept(k1: int, k2: int, burn_in: int) -> int:
    """How many steps before its own k1 a window is run from."""
    return max(0, k2 + burn_in - k1)


def _while_live(step: Step) -> Step:
    """The step of `(x, live)`: where not live, it leaves the state alone."""

    def step_while_live(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        x, live = x
        after, output = step(params, state, x)
        return jax.tree.map(lambda a, b: jnp.where(live, a, b), after, state), output

    return step_while_live


def _per_step(xs: Any, value: Any) -> jax.Array:
    """`[T, B]`, full of the value."""
    return jnp.full(jax.tree.leaves(xs)[0].shape[:2], value)


def _empty_stream(state: Any, xs: Any, targets: Any, kept: int) -> Stream:
    """That of which nothing was read yet."""

    def like(name: str, tree: Any) -> Any:
        for leaf in jax.tree.leaves(tree):
            if jnp.ndim(leaf) < 2:
                raise ValueError(f"{name}: found shape {jnp.shape(leaf)}, expected [T, B, …]")
        return jax.tree.map(lambda a: _zeros(kept, jnp.asarray(a)), tree)

    xs = like("xs", xs)
    batch = jax.tree.leaves(state)[0].shape[0]
    return Stream(
        state,
        jnp.zeros((), jnp.int32),
        xs,
        like("targets", targets),
        jnp.zeros((kept, batch)),
        jnp.zeros((kept, batch), bool),
    )


def _zeros(steps: int, a: jax.Array) -> jax.Array:
    """`[steps, B, …]` like `a`; copies of its first step where there are no zeros of its kind: PRNG keys."""
    if problem.is_number(a):
        return jnp.zeros((steps, *a.shape[1:]), a.dtype)
    return jnp.broadcast_to(a[:1], (steps, *a.shape[1:]))


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer: found {describe(optimizer)}, expected one of optax, such as optax.adam(1e-3)")


def _check_train_state(train_state: Any) -> None:
    if not isinstance(train_state, TrainState):
        raise TypeError(f"train_state: found {describe(train_state)}, expected a TrainState, such as init returns")


def _check_carry(carry: Any, xs: Any, targets: Any, kept: int) -> Any:
    """The recurrent state in the carry, which fits the chunk that comes next."""
    if not kept:
        if isinstance(carry, Stream):
            raise TypeError(
                "train_state.carry: found a Stream, expected a recurrent state, since k2 + burn_in is no more than k1; "
                "init without xs, targets, k1 and k2 makes it"
            )
        return carry
    if not isinstance(carry, Stream):
        raise TypeError(
            "train_state.carry: found a recurrent state, expected a Stream, since k2 + burn_in is more than k1; init "
            "with xs, targets, k1, k2 and burn_in makes it"
        )
    if len(carry.mask) != kept:
        raise ValueError(
            f"train_state.carry: found a Stream of {len(carry.mask)} steps, expected k2 + burn_in - k1 = {kept}; init "
            "with the same k1, k2 and burn_in makes it"
        )
    for name, before, found in (("xs", carry.xs, xs), ("targets", carry.targets, targets)):
        check_like(
            example(arrays(name, found), 1),
            example(before, 1),
            lambda path, name=name: f"{name}{jax.tree_util.keystr(path or ())}: found",
            f"(without the time axis) as in train_state.carry.{name}",
        )
    return carry.state
