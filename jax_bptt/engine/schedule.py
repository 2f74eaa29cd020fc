"""The schedule: which steps of a call have losses, how far back their credit travels, and which state is returned.

    exact(T)                        every loss, all the way
    truncated(T, k1, k2, losses)    in windows that end every k1 steps and begin k2 steps before their end

Where every window of a truncation begins at the outset, nothing is cut: it is the exact gradient of its losses, each as
often as it counts.

All of it is counted in plain numbers, before anything is traced. How a schedule is computed is for `plan` to say.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jax_bptt.model import Losses


class Grid(NamedTuple):
    """Where truncation cuts: windows of k2 steps that end at context + k1, context + 2·k1, … of `steps` steps."""

    steps: int
    k1: int
    k2: int
    losses: Losses
    context: int = 0

    @property
    def blocks(self) -> int:
        """The number of blocks that have losses, the last one partial where k1 does not fit."""
        return -(-(self.steps - self.context) // self.k1)

    @property
    def reach(self) -> int:
        """q: into how many blocks before its own a window reaches."""
        return (self.k2 - 1) // self.k1

    @property
    def front(self) -> int:
        """The number of steps before the first one that the blocks have."""
        return self.reach * self.k1 - self.context

    @property
    def rest(self) -> int:
        """The number of steps of the last block where it is not full, else 0."""
        return (self.steps - self.context) % self.k1

    @property
    def alone(self) -> bool:
        """Whether windows meet, without an overlap, each with all of its losses and none of a context."""
        return self.k1 == self.k2 and self.losses != "last" and not self.context

    @property
    def padded(self) -> bool:
        """Whether the blocks have more steps than there are."""
        return self.front > 0 or self.rest > 0

    def windows(self) -> Iterator[tuple[int, int, int]]:
        """Of each window how many steps are before its first one, before its first loss, and up to its end."""
        for end in range(self.context + self.k1, self.context + self.k1 * self.blocks + 1, self.k1):
            start = max(0, end - self.k2)
            first = {"newest": end - self.k1, "all": max(self.context, start), "last": end - 1}[self.losses]
            yield start, max(0, first), end

    def counts(self) -> np.ndarray:
        """How many windows have the loss of each step, `[T]`."""
        counts = np.zeros(self.steps, int)
        for _, first, end in self.windows():
            counts[first:end] += 1
        return counts

    def reaches(self, lags: int) -> np.ndarray:
        """How many windows carry the credit of each loss back over each number of steps, `[T, lags + 1]`."""
        counts = np.zeros((self.steps, lags + 1), int)
        for start, first, end in self.windows():
            for loss in range(first, min(end, self.steps)):
                counts[loss, : loss - start + 1] += 1
        return counts


class Schedule(NamedTuple):
    """What is computed of a call."""

    burn_in: int  # the first steps, which only bring the state up to date: no loss, and no credit through it
    steps: int  # those after the burn-in
    grid: Grid | None  # where their credit stops; None where it travels all the way
    returned: int  # after how many of all steps the state is returned
    counts: np.ndarray | None = None  # how often the loss of each step after the burn-in counts; None: all once


def exact(steps: int, burn_in: int = 0, returned: int | None = None, context: int = 0) -> Schedule:
    """That of exact BPTT over `steps` steps, the burn-in and a context without losses after it included.

    Args:
        returned: after how many steps the state is returned; None: before the last ones, as many as the context has.
    """
    counts = np.arange(steps - burn_in) >= context if context else None
    return Schedule(burn_in, steps - burn_in, None, steps - context if returned is None else returned, counts)


def truncated(steps: int, k1: int, k2: int, losses: Losses = "newest", burn_in: int = 0, context: int = 0) -> Schedule:
    """That of truncated BPTT, the context included: what of it no window reaches is burn-in, too.

    Raises:
        ValueError: for a number of steps that is symbolic.
    """
    if not isinstance(steps, int):
        raise ValueError(f"length: found {steps} time steps, expected a number, since k1 and k2 cut them into windows")
    reach = Grid(steps, k1, k2, losses).reach * k1
    burn_in += max(0, context - reach)
    after = steps - burn_in
    grid = Grid(after, k1, k2, losses, min(context, reach))
    cuts = grid.context + k1 * grid.blocks > k2  # the last window, if any, begins after the outset
    counts = grid.counts()
    return Schedule(burn_in, after, grid if cuts else None, steps - context, None if (counts == 1).all() else counts)
