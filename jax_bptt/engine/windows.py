"""The window: time cut into stretches of W steps, the unit of saving, recomputing and reversing.

T steps make T // W full windows and, where W does not divide T, a last one of T mod W steps. `scan_windows` carries a
value over them in either direction: the full windows in one `lax.scan`, which slices them out of the whole sequence as
it goes, and the last one by a call of its own. No step is padded and none is copied beforehand.

Inside a window, what is parallel in time is done for all rows at once, a row being one step of one example. Rows keep
their axes, time and batch: were they one, a batch that is divided among devices could not stay so. `vmap_leading` maps
a function of one row over them, and `without_leading` tells the shapes of one row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.engine.leaves import shape_like
from jax_bptt.model import PyTree


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
        return 1 if self.size == self.steps else self.steps // self.size

    @property
    def rest(self) -> int:
        """The number of steps in the last window where it is not full, else 0."""
        return 0 if self.size == self.steps else self.steps % self.size


class PerWindow(NamedTuple):
    """What belongs to each window: stacked for the full ones, on its own for the last one where it is shorter."""

    full: Any = None
    last: Any = None


def scan_windows(
    body: Callable[[Any, Any, Any, int], tuple[Any, Any]],
    carry: Any,
    timed: Any,
    windows: Windows,
    *,
    stored: PerWindow = PerWindow(),
    reverse: bool = False,
) -> tuple[Any, PerWindow]:
    """Carry a value over the windows, first to last or, with `reverse`, last to first.

    Args:
        body: `body(carry, timed, stored, size) -> (carry, out)`, of one window of so many steps.
        timed: a pytree of `[overlap + T, …]`, of which `body` gets the window's steps.
        stored: what belongs to each window, as an earlier pass returned it.

    Returns:
        The carry at the end, and what `body` returned for each window.
    """

    def cut(start, size):
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, windows.overlap + size), timed)

    def over_full(carry):
        if not windows.full:
            return carry, None

        def step(carry, window):
            index, stored = window
            return body(carry, cut(index * windows.size, windows.size), stored, windows.size)

        return jax.lax.scan(step, carry, (jnp.arange(windows.full), stored.full), reverse=reverse)

    def over_last(carry):
        if not windows.rest:
            return carry, None
        return body(carry, cut(windows.full * windows.size, windows.rest), stored.last, windows.rest)

    if reverse:
        carry, last = over_last(carry)
        carry, full = over_full(carry)
    else:
        carry, full = over_full(carry)
        carry, last = over_last(carry)
    return carry, PerWindow(full, last)


def join(outs: PerWindow) -> PyTree:
    """Outputs of `[W, …]` of each window, put together along time: `[T, …]`."""
    if outs.full is None:
        return outs.last
    full = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), outs.full)
    if outs.last is None:
        return full
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), full, outs.last)


def vmap_leading(function: Callable, in_axes: Any, sizes: Sequence[int | None]) -> Callable:
    """`jax.vmap` over leading axes of these sizes, None where the arguments tell, of arguments whose `in_axes` is 0."""
    for size in reversed(sizes):
        function = jax.vmap(function, in_axes, axis_size=size)
    return function


def map_leading(function: Callable, in_axes: Any, sizes: Sequence[int]) -> Callable:
    """As `vmap_leading`, but in loops: each call has the shapes that it has by itself."""

    def mapped(function: Callable, size: int) -> Callable:
        def over(*arguments: Any) -> Any:
            axes = (in_axes,) * len(arguments) if isinstance(in_axes, int) else in_axes

            def one(_: None, moving: list[Any]) -> tuple[None, Any]:
                rest = iter(moving)
                return None, function(
                    *(a if axis is None else next(rest) for a, axis in zip(arguments, axes, strict=True))
                )

            moving = [a for a, axis in zip(arguments, axes, strict=True) if axis is not None]
            return jax.lax.scan(one, None, moving, length=size)[1]

        return over

    for size in reversed(sizes):
        function = mapped(function, size)
    return function


def without_leading(tree: PyTree, axes: int) -> PyTree:
    """The shapes of one example: `tree` without the first `axes` axes of its leaves."""
    return jax.tree.map(lambda a: shape_like(a, axes), tree)
