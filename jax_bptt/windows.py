"""The window: time cut into stretches of W steps, the unit of saving, recomputing and reversing.

T steps make T // W full windows and, where W does not divide T, a last one of T mod W steps. `scan` carries a value
over them in either direction: the full windows in one `lax.scan`, which slices them out of the whole sequence as it
goes, and the last one by a call of its own. No step is padded and none is copied beforehand.

Inside a window, what is parallel in time is done for all rows at once, a row being one step of one example. Rows keep
their axes, time and batch: were they one, a batch that is divided among devices could not stay so. `over` maps a
function of one row over them, and `example` tells the shapes of one row.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp


class Windows(NamedTuple):
    """A sequence of `steps` time steps, cut into windows of `size` steps.

    With an `overlap`, each window has that many steps before its own ones, too; the sequence then begins with as many.
    """

    steps: int
    size: int
    overlap: int = 0

    @property
    def full(self) -> int:
        """The number of full windows."""
        return self.steps // self.size

    @property
    def rest(self) -> int:
        """The number of steps in the last window where it is not full, else 0."""
        return self.steps % self.size


class PerWindow(NamedTuple):
    """What belongs to each window: stacked for the full ones, on its own for the last one where it is shorter."""

    full: Any = None
    last: Any = None


def default_size(steps: int, batch: int, save: str | None) -> int:
    """The number of steps in a window, where the user leaves it to us.

    Where every state is saved, about 1024 rows, which is enough for an efficient matrix product, but 16 to 64 steps and
    no more than a quarter of the sequence, so that what is computed about a window stays small beside what is saved of
    the sequence. (Measured with windows of 4 to 128 on two CPU cores, elman and gru, B from 1 to 128, H from 64 to 256:
    within a tenth of the fastest size as a rule, where 64 steps at B = 128 take twice the memory.) Near √T where only
    the boundaries are saved: √T first states and √T recomputed ones, the least in sum.

    A size within a factor of two that divides T is preferred, so that all windows are alike.
    """
    wanted = max(16, min(64, 1024 // batch, steps // 4)) if save != "boundaries" else max(1, round(math.sqrt(steps)))
    near = [size for size in range((wanted + 1) // 2, 2 * wanted + 1) if steps % size == 0]
    return min(steps, min(near, key=lambda size: abs(math.log(size / wanted)), default=wanted))


def scan(
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    timed: Any,
    windows: Windows,
    *,
    stored: PerWindow = PerWindow(),
    reverse: bool = False,
) -> tuple[Any, PerWindow]:
    """Carry a value over the windows, first to last or, with `reverse`, last to first.

    Args:
        body: `body(carry, timed, stored) -> (carry, out)`, of one window.
        carry: what is carried, at the outset.
        timed: a pytree of `[overlap + T, …]`, of which `body` gets the window's steps.
        windows: how time is cut.
        stored: what belongs to each window, as an earlier `scan` returned it.
        reverse: whether to go from the last window to the first.

    Returns:
        The carry at the end, and what `body` returned for each window.
    """

    chex.assert_tree_shape_prefix(timed, (windows.overlap + windows.steps,))

    def cut(start, size):
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, windows.overlap + size), timed)

    def over_full(carry):
        if not windows.full:
            return carry, None

        def step(carry, window):
            index, stored = window
            return body(carry, cut(index * windows.size, windows.size), stored)

        return jax.lax.scan(step, carry, (jnp.arange(windows.full), stored.full), reverse=reverse)

    def over_last(carry):
        if not windows.rest:
            return carry, None
        return body(carry, cut(windows.full * windows.size, windows.rest), stored.last)

    if reverse:
        carry, last = over_last(carry)
        carry, full = over_full(carry)
    else:
        carry, full = over_full(carry)
        carry, last = over_last(carry)
    return carry, PerWindow(full, last)


def join(outs: PerWindow) -> Any:
    """Outputs of `[W, …]` of each window, put together along time: `[T, …]`."""
    if outs.full is None:
        return outs.last
    full = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outs.full)
    if outs.last is None:
        return full
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), full, outs.last)


def over(function: Callable, in_axes: Any, axes: int) -> Callable:
    """`jax.vmap` over that many leading axes; `in_axes` says of which arguments, by 0, and None of the others."""
    for _ in range(axes):
        function = jax.vmap(function, in_axes)
    return function


def example(tree: Any, axes: int) -> Any:
    """The shapes of one example: `tree` without the first `axes` axes of its leaves."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[axes:], a.dtype), tree)
