"""Online training: an update every k1 steps, walking a chunk in one scan.

    window by window        truncated BPTT, each update by the gradient of one window of k2 steps
    forwards in time        by a gradient that is carried forwards, and no window is kept

Either is a pair `init, update`, as those of optax. The carry of the first is a `Stream` where a window reaches back
before the chunk.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_bptt.checks.arguments import Arguments, arrays, check_call, check_like
from jax_bptt.checks.options import check_count, check_options, check_truncation, describe
from jax_bptt.engine import schedule
from jax_bptt.engine.flatten import Call
from jax_bptt.engine.leaves import is_key
from jax_bptt.engine.passes import value_and_gradient
from jax_bptt.engine.schedule import Schedule
from jax_bptt.engine.windows import without_leading
from jax_bptt.forward_mode.carried import Carry
from jax_bptt.model import ForwardMode, Loss, Losses, Model, PyTree, Reduction, Save, Step, step_of
from jax_bptt.training.updates import (
    Metrics,
    Steps,
    Stream,
    TrainState,
    Update,
    check_optimizer,
    check_train_state,
    init,
    train_step,
    updated,
)


class Online(NamedTuple):
    """Online training, as a pair like those of optax: `init` makes what `update` changes."""

    init: Callable[..., TrainState]  # init(params, state, xs=None, targets=None, key=None)
    update: Update


def train_online(
    model: Model,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    k1: int,
    k2: int | None = None,
    *,
    losses: Losses = "newest",
    reduction: Reduction = "sum",
    burn_in: int = 0,
    save: Save | None = None,
    skip_nonfinite: bool = False,
    forward: Callable[..., ForwardMode[Any]] | None = None,
) -> Online:
    """An update every k1 steps: by truncated BPTT, each by the gradient of one window of k2, or forwards in time.

    A window ends at e = k1, 2·k1, …. With the params θ as they are then, and from the stored state h_s, where
    s = max(0, e − max(k1, k2 + burn_in)),

        h_t, ŷ_t = step(θ, h_{t−1}, x_t)    t = s+1 … e
        θ ← θ + optimizer(∂/∂θ Σ ℓ_t)       over the window's losses, with h_{max(0, e−k2)} held constant

    The stored state was computed with params of earlier updates; the `burn_in` steps before the window, through which
    no credit travels, freshen it. The states from s to e are those of the current params, and the one among them with
    which the next window begins is stored. Memory is O(max(k1, k2 + burn_in)), whatever the length of a chunk. For
    k1 = k2 this is a loop over chunks of k1 steps, with one update by `bptt` each.

    Chunks are pieces of one stream: a window reaches back into the chunk before, for which the carry keeps its last
    k2 + burn_in − k1 steps.

    With `forward` no window is kept and k2 is not given: the gradient of the last k1 losses is carried forwards in
    time, how far back their credit travels being for it to say, and the state is the one that was reached.

    Args:
        model, loss, save: as for `bptt`.
        optimizer: of optax.
        k1: steps from one update to the next.
        k2: steps that a window's credit travels at most; None with `forward`.
        losses: which a window has, as for `truncated_bptt`: "newest", the last k1; "all", those of its k2 steps;
            "last", that of its last step.
        reduction: as for `bptt`, of the losses of one window.
        burn_in: steps run before a window.
        skip_nonfinite: as for `train_step`.
        forward: `jb.rtrl`, `jb.snap1`, `jb.eprop` or `jb.uoro`, with options by `functools.partial`, or another
            function `forward(model, loss, reduction=…)` to a pair `init, gradient`; None for truncated BPTT.

    Returns:
        A pair `init, update`, like those of optax.

        * `init(params, state, xs=None, targets=None, key=None)`: the `TrainState` to begin with, of copies; where
          k2 + burn_in > k1, xs and targets are those of a chunk, or arrays like them (`[T, B, …]`, of any T). `key` is
          for `jb.uoro`.
        * `update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`, with xs and targets of
          `[T, B, …]` for a multiple T of k1, and mask and reset as for `bptt`: T / k1 updates in one `lax.scan`. The
          metrics are arrays of `[T / k1]`, in order.

        Pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.

    Source:
        R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories", 1990; I. Sutskever, "Training recurrent neural networks", 2013, section 2.8.6.
    """
    check_optimizer(optimizer)
    if forward is not None:
        _check_forward(forward, k2, losses=losses, burn_in=burn_in, save=save)
        pair = forward(model, loss, reduction=reduction)
        return _forwards(pair, optimizer, check_count("k1", k1), skip_nonfinite)
    burn_in, _ = check_options(loss, reduction, burn_in, save)
    k1, k2, _ = check_truncation(k1, k2, losses)
    kept = max(0, k2 + burn_in - k1)
    counted = np.arange(kept + k1) >= {"newest": kept, "all": 0, "last": kept + k1 - 1}[losses]
    scheduled = schedule.exact(kept + k1, burn_in=kept + k1 - k2, returned=k1)
    gradient = functools.partial(value_and_gradient, reduction=reduction, save=save)
    update_of = functools.partial(updated, optimizer, skip_nonfinite)
    return _windows(step_of(model), loss, optimizer, scheduled, counted, gradient, update_of)


def _windows(
    step: Step,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    scheduled: Schedule,
    counted: np.ndarray,
    gradient: Callable[[Call, Schedule], tuple[tuple[jax.Array, PyTree], PyTree]],
    update_of: Callable[..., tuple[TrainState, Metrics]],
) -> Online:
    """Online training with truncated BPTT, of windows of so many steps, those before their first loss included.

    Args:
        scheduled: that of a window, which returns the state after its first k1 steps, where the next one begins.
        counted: which of its steps have losses.
    """
    k1, kept = scheduled.returned, len(counted) - scheduled.returned

    def begin(
        params: PyTree, state: PyTree, xs: PyTree = None, targets: PyTree = None, key: jax.Array | None = None
    ) -> TrainState:
        if key is not None:
            raise ValueError(f"key: found {describe(key)}, expected None: nothing is drawn in truncated BPTT")
        return init(params, optimizer, _empty_stream(state, xs, targets, kept) if kept else state)

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        state = _check_carry(train_state.carry, xs, targets, kept)
        call = check_call(step, loss, Arguments(train_state.params, state, xs, targets, mask, reset), argnums=(0,))
        if call.steps % k1:
            raise ValueError(f"xs: found {call.steps} time steps, expected a multiple of k1 = {k1}, one update each")

        def window(old: TrainState, new: Steps) -> tuple[TrainState, Metrics]:
            steps, live = (_joined(old.carry, new, (k1, *call.batch)) if kept else new), jnp.ones(kept + k1, bool)
            of_window = call._replace(params=old.params, state=old.carry, steps=kept + k1, **steps._asdict())
            if kept:
                live = jnp.arange(kept + k1) >= kept - old.carry.read
                of_window = _while_live(of_window, old.carry.state, live, kept)
            if kept or not counted.all():
                mask = jnp.ones((kept + k1, *call.batch), call.loss_dtype) if steps.mask is None else steps.mask
                mask = jnp.where((live & counted)[:, None], mask, 0).astype(call.loss_dtype)
                of_window = of_window._replace(mask=mask)
            (value, carry), grads = gradient(of_window, scheduled)
            if kept:
                read = jnp.minimum(old.carry.read + k1, kept)
                carry = Stream(carry, read, jax.tree.map(lambda a: a[k1:], steps))
            return update_of(old, value, carry, grads)

        steps = Steps(call.xs, call.targets, call.mask, call.reset)
        windows = jax.tree.map(lambda a: a.reshape(a.shape[0] // k1, k1, *a.shape[1:]), steps)
        return jax.lax.scan(window, train_state, windows)

    return Online(begin, update)


def _forwards(pair: ForwardMode[Any], optimizer: optax.GradientTransformation, k1: int, skip_nonfinite: bool) -> Online:
    """Online training with a gradient that is carried forwards in time."""
    update_once = train_step(pair.gradient, optimizer, skip_nonfinite=skip_nonfinite)

    def begin(
        params: PyTree, state: PyTree, xs: PyTree = None, targets: PyTree = None, key: jax.Array | None = None
    ) -> TrainState:
        takes_key = "key" in inspect.signature(pair.init).parameters
        if key is not None and not takes_key:
            raise ValueError(f"key: found {describe(key)}, expected None: nothing is drawn by this gradient")
        drawn_from = {"key": key} if takes_key else {}
        return init(params, optimizer, pair.init(params, state, xs, **drawn_from))

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        given = {"xs": xs, "targets": targets, "mask": mask, "reset": reset}
        steps = Steps(**{name: arrays(name, tree) for name, tree in given.items()})
        length = next((len(leaf) for leaf in jax.tree.leaves(steps) if leaf.ndim), 0)
        if not length or length % k1 or any(leaf.shape[:1] != (length,) for leaf in jax.tree.leaves(steps)):
            shapes = {name: jax.tree.map(jnp.shape, tree) for name, tree in steps._asdict().items() if tree is not None}
            raise ValueError(f"xs: found {shapes}, expected [T, …], of a multiple T of k1 = {k1}, one update each")
        if isinstance(train_state.carry, Carry) and train_state.carry.influence is None:
            laid_out = pair.init(train_state.params, train_state.carry.state, steps.xs)
            train_state = train_state._replace(carry=laid_out)

        def window(old: TrainState, new: Steps) -> tuple[TrainState, Metrics]:
            return update_once(old, new.xs, new.targets, mask=new.mask, reset=new.reset)

        windows = jax.tree.map(lambda a: a.reshape(length // k1, k1, *a.shape[1:]), steps)
        return jax.lax.scan(window, train_state, windows)

    return Online(begin, update)


def _check_forward(forward: Any, k2: Any, **options: Any) -> None:
    """That what makes a pair does, and that nothing is asked for that only truncated BPTT has."""
    if not callable(forward):
        raise TypeError(f"forward: found {describe(forward)}, expected a function, such as jax_bptt.rtrl")
    for name, default in {"k2": None, "losses": "newest", "burn_in": 0, "save": None}.items():
        found = k2 if name == "k2" else options[name]
        if found != default:
            raise ValueError(f"{name}: found {found!r}, expected {default!r} with `forward`, which keeps no window")


def _joined(stream: Stream, new: Steps, shape: tuple[int, ...]) -> Steps:
    """The steps kept of a stream and after them the new ones, `[k1, B, …]`."""
    mask = jnp.ones(shape) if new.mask is None else new.mask.astype(float)
    new = new._replace(mask=mask, reset=jnp.zeros(shape, bool) if new.reset is None else new.reset)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stream.kept, new)


def _while_live(call: Call, state: PyTree, live: jax.Array, kept: int) -> Call:
    """A call whose first steps, those that are not live, leave the state alone, whatever their inputs are."""

    def step(params: PyTree, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        x, live = x
        after, output = call.step(params, state, x)
        return jax.tree.map(lambda a, b: jnp.where(live, a, b), after, state), output

    xs = jax.tree.map(lambda x: jax.vmap(jnp.where, in_axes=(0, 0, None))(live, x, x[kept]), call.xs)
    return call._replace(step=step, state=state, xs=(xs, jnp.broadcast_to(live[:, None], (call.steps, *call.batch))))


def _empty_stream(state: PyTree, xs: PyTree, targets: PyTree, kept: int) -> Stream:
    """That of which nothing was read yet."""

    def like(name: str, tree: PyTree) -> PyTree:
        if tree is None:
            raise TypeError(f"{name}: found None, expected those of a chunk, since k2 + burn_in is more than k1")
        for leaf in jax.tree.leaves(tree):
            if jnp.ndim(leaf) < 2:
                raise ValueError(f"{name}: found shape {jnp.shape(leaf)}, expected [T, B, …]")
        return jax.tree.map(lambda a: _zeros(kept, jnp.asarray(a)), tree)

    xs, targets, shape = like("xs", xs), like("targets", targets), (kept, jax.tree.leaves(state)[0].shape[0])
    return Stream(state, jnp.zeros((), jnp.int32), Steps(xs, targets, jnp.zeros(shape), jnp.zeros(shape, bool)))


def _zeros(steps: int, a: jax.Array) -> jax.Array:
    """`[steps, B, …]` like `a`; copies of its first step where there are no zeros of its kind: PRNG keys."""
    if is_key(a):
        return jnp.broadcast_to(a[:1], (steps, *a.shape[1:]))
    return jnp.zeros((steps, *a.shape[1:]), a.dtype)


def _check_carry(carry: PyTree, xs: PyTree, targets: PyTree, kept: int) -> PyTree:
    """The recurrent state in the carry, which fits the chunk that comes next."""
    expected, than = ("a Stream", "more") if kept else ("a recurrent state", "no more")
    if isinstance(carry, Stream) != bool(kept):
        found = "a recurrent state" if kept else "a Stream"
        raise TypeError(
            f"train_state.carry: found {found}, expected {expected}, since k2 + burn_in is {than} than k1; the "
            "init that train_online returns with the update makes it"
        )
    if not kept:
        return carry
    if len(carry.kept.mask) != kept:
        raise ValueError(
            f"train_state.carry: found a Stream of {len(carry.kept.mask)} steps, expected k2 + burn_in - k1 = {kept}; "
            "the init that train_online returns with the update makes it"
        )
    for name, before, found in (("xs", carry.kept.xs, xs), ("targets", carry.kept.targets, targets)):
        check_like(
            without_leading(arrays(name, found), 1),
            without_leading(before, 1),
            lambda path, name=name: f"{name}{jax.tree_util.keystr(path or ())}: found",
            f"(without the time axis) as in train_state.carry.kept.{name}",
        )
    return carry.state
