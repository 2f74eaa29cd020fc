"""Where truncation cuts: the windows over a sequence, and how often each loss, and each credit, is in one.

A window ends every k1 steps and begins k2 steps before its end. All of it is counted in plain numbers, before anything
is traced.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """Where truncation cuts: windows of k2 steps that end at context + k1, context + 2·k1, … of `steps` steps."""

    steps: int
    k1: int
    k2: int
    losses: str
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
