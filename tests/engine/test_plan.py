"""What is chosen where the user leaves it to us."""

import numpy as np
import pytest

from jax_bptt.engine.plan import ask_alone, default_lanes, default_window
from jax_bptt.engine.schedule import Grid


@pytest.mark.parametrize("batch", [1, 8, 32, 128, 5000])
def test_default_window_divides_where_it_can_and_stays_near_what_is_wanted(batch):
    for steps in range(1, 1000):
        size = default_window(steps, batch, "states")
        assert min(steps, 8) <= size <= 128
        assert steps % size == 0 or not any(steps % s == 0 for s in range(size // 2 + 1, 2 * size))
        size = default_window(steps, batch, "boundaries")
        assert np.sqrt(steps) / 2 - 1 <= size <= 2 * np.sqrt(steps) + 1


def test_a_window_of_truncation_that_is_run_alone_is_cut_as_a_part_of_a_long_sequence():
    assert ask_alone(32, 32, opaque=False, save=None) == {"window": 32, "save": "dots"}
    assert ask_alone(128, 32, opaque=False, save=None) == {"window": 32, "save": None}
    assert ask_alone(128, 32, opaque=False, save="boundaries") == {"save": None}
    assert ask_alone(128, 1, opaque=False, save="boundaries") == {"window": 64, "save": None}
    assert ask_alone(32, 32, opaque=True, save="dots") == {"save": "dots"}


def test_default_window_by_example():
    assert default_window(512, 32, "states") == 32
    assert default_window(1024, 1, "states") == 64
    assert default_window(64, 32, "states") == 16
    assert default_window(10, 32, "states") == 10
    assert default_window(65536, 8, "boundaries") == 256


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 30), (8, 32), (32, 32), (100, 300)])
def test_default_lanes_are_few_beside_all_windows(k1, k2, batch):
    for steps in (1, 40, 1000):
        grid = Grid(steps, k1, k2, "newest")
        lanes = default_lanes(grid, batch)
        assert 1 <= lanes <= grid.blocks
        assert lanes <= max(1 + grid.reach, grid.blocks // 4, -(-32 // batch))
        assert lanes >= min(grid.blocks, 1 + grid.reach)
        assert not grid.alone or lanes == (1 if batch >= 8 else min(grid.blocks, 32))
        assert default_lanes(grid, batch, at_once=False) >= min(grid.blocks, 32 // batch)
