"""Online training: an update every k1 steps, walking a chunk in one scan.

    by_windows      truncated BPTT, each update by the gradient of one window of k2 steps
    drawn_windows   truncation without bias: it is drawn how many windows of k1 steps an update goes back over
    forwards        by a gradient that is carried forwards, and no window is kept

Each is a pair `init, update`, as those of optax.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax

from jax_bptt.checks.options import check_count, check_cut, check_cuts, check_options, check_truncation, describe
from jax_bptt.engine import schedule
from jax_bptt.engine.passes import value_and_gradient
from jax_bptt.model import ForwardMode, Loss, Losses, Model, Reduction, Save, step_of
from jax_bptt.training.by_windows import update_by_windows
from jax_bptt.training.drawn_windows import update_drawn_windows
from jax_bptt.training.forwards import update_forwards
from jax_bptt.training.updates import Online, check_optimizer, updated


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
    cut: float | Sequence[float] | None = None,
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

    With `cut` it is drawn how far back an update goes, of all examples together: over each boundary between windows of
    k1 steps with probability 1 − cut, and no further than k2 steps, a multiple of k1. δ is multiplied by 1/(1 − cut)
    there, so that on average the gradient is that of all k2 steps; where that is long enough to hold all credit, the
    exact one. Each update runs the steps that it goes back over, at most k1/cut on average, forwards and backwards,
    from the state that was reached before them; the carry keeps the states and steps of k2.

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
        cut: the probability of a cut at each boundary, at least 0 and less than 1, or one for each of the k2/k1 − 1
            boundaries, the newest first; None for windows that always have k2 steps. Not with a burn-in, nor with other
            losses than the newest.
        forward: `jb.rtrl`, `jb.snap1`, `jb.eprop` or `jb.uoro`, with options by `functools.partial`, or another
            function `forward(model, loss, reduction=…)` to a pair `init, gradient`; None for truncated BPTT.

    Returns:
        A pair `init, update`, like those of optax.

        * `init(params, state, xs=None, targets=None, key=None)`: the `TrainState` to begin with, of copies; where
          k2 + burn_in > k1, xs and targets are those of a chunk, or arrays like them (`[T, B, …]`, of any T). `key` is
          for `cut` and for `jb.uoro`.
        * `update(train_state, xs, targets, *, mask=None, reset=None) -> (train_state, metrics)`, with xs and targets of
          `[T, B, …]` for a multiple T of k1, and mask and reset as for `bptt`: T / k1 updates in one `lax.scan`. The
          metrics are arrays of `[T / k1]`, in order.

        Pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.

    Source:
        R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories", 1990; I. Sutskever, "Training recurrent neural networks", 2013, section 2.8.6; C. Tallec and
        Y. Ollivier, "Unbiasing truncated backpropagation through time", 2017, for `cut`.
    """
    check_optimizer(optimizer)
    if forward is not None:
        _check_forward(forward, k2, losses=losses, burn_in=burn_in, save=save, cut=cut)
        pair = forward(model, loss, reduction=reduction)
        return update_forwards(pair, optimizer, check_count("k1", k1), skip_nonfinite)
    burn_in, _ = check_options(loss, reduction, burn_in, save)
    k1, k2, _ = check_truncation(k1, k2, losses)
    gradient = functools.partial(value_and_gradient, reduction=reduction, save=save)
    update_of = functools.partial(updated, optimizer, skip_nonfinite)
    if cut is not None:
        cuts = _check_drawn(cut, k1, k2, losses=losses, burn_in=burn_in)
        return update_drawn_windows(step_of(model), loss, optimizer, k1, cuts, gradient, update_of)
    kept = max(0, k2 + burn_in - k1)
    counted = np.arange(kept + k1) >= {"newest": kept, "all": 0, "last": kept + k1 - 1}[losses]
    scheduled = schedule.exact(kept + k1, burn_in=kept + k1 - k2, returned=k1)
    return update_by_windows(step_of(model), loss, optimizer, scheduled, counted, gradient, update_of)


def _check_drawn(cut: Any, k1: int, k2: int, **options: Any) -> tuple[float, ...]:
    """The probability of a cut at each boundary inside of k2 steps, and that nothing else is asked for."""
    for name, default in {"losses": "newest", "burn_in": 0}.items():
        if options[name] != default:
            raise ValueError(f"{name}: found {options[name]!r}, expected {default!r} with `cut`")
    if k2 % k1:
        raise ValueError(f"k2: found {k2}, expected a multiple of k1 = {k1} with `cut`, by which windows are drawn")
    return check_cuts(check_cut(cut), k2, k1, 0)


def _check_forward(forward: Any, k2: Any, **options: Any) -> None:
    """That what makes a pair does, and that nothing is asked for that only truncated BPTT has."""
    if not callable(forward):
        raise TypeError(f"forward: found {describe(forward)}, expected a function, such as jax_bptt.rtrl")
    for name, default in {"k2": None, "losses": "newest", "burn_in": 0, "save": None, "cut": None}.items():
        found = k2 if name == "k2" else options[name]
        if found != default:
            raise ValueError(f"{name}: found {found!r}, expected {default!r} with `forward`, which keeps no window")
