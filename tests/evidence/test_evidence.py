"""The scripts are run by `python -m tests.evidence`; here those that take seconds, and the page made of all."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.evidence import __main__ as program
from tests.evidence import checkpointing, influence_balancing, page, two_lag_coins

PAGE = Path(__file__).parents[2] / "docs" / "evidence"


def test_influence_balancing_to_the_last_digit(tmp_path, capsys):
    program.main(["--only", "influence_balancing", "--out", str(tmp_path)])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1 of 1: influence_balancing"
    assert len([line for line in told if line.startswith("  seen: ")]) == 11
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "influence_balancing.png"}


def test_floors_of_the_coins():
    floors = [two_lag_coins.floor(known) for known in two_lag_coins.KNOWN.values()]
    assert np.round(floors, 4).tolist() == [0.6616, 0.5192, 0.4545]


def test_windows_of_five_learn_the_first_lag_only():
    """One network of the five that the script trains."""
    lags, units, updates = two_lag_coins.PUBLISHED[5]
    assert lags == "the first"
    assert abs(two_lag_coins.train_as_published(5, units, updates, 0) - 0.5192) < two_lag_coins.TOLERANCE


@pytest.mark.parametrize(("t", "m"), [(1, 1), (7, 1), (7, 2), (9, 3), (5, 5), (6, 8)])
@pytest.mark.parametrize("again", [True, False])
def test_the_dynamic_programme_equals_a_recursion(t, m, again):
    def least(t, m):
        if t <= 1 or m == 1:
            return t * (t + 1) // 2
        if again:  # the step of what is kept is run again
            return min(y + least(t - y, m - 1) + least(y, m) for y in range(1, t))
        return min(y + least(t - y, m - 1) + least(y - 1, m) for y in range(1, t + 1))

    assert checkpointing.steps_forwards(t, m, again)[m, t] == least(t, m)
    assert again or m < t or least(t, m) == t  # with room for all no step is run twice


def test_a_page_tells_what_was_not_seen(tmp_path):
    found = page.Result([("a", "b"), ("1", "2")], Figure(), {"two is more": True, "one is more": False})
    written = page.write([page.Entry(influence_balancing, found, 3.0)], tmp_path).read_text(encoding="utf-8")
    assert "* two is more" in written
    assert "* NOT SEEN: one is more" in written
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |" in written
    assert (tmp_path / "influence_balancing.png").exists()


def test_the_page_is_of_these_scripts_and_all_was_seen():
    written = (PAGE / "README.md").read_text(encoding="utf-8")
    assert "NOT SEEN" not in written
    for name in program.SCRIPTS:
        assert f"`python -m tests.evidence --only {name}`" in written
        assert matplotlib.image.imread(PAGE / f"{name}.png").shape[0] > 300
    titles = re.findall(r"^## (.+)$", written, re.M)
    assert len(titles) == len(program.SCRIPTS)
