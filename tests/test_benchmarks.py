import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.benchmarks import __main__ as program
from tests.benchmarks import devices, gpu, picture, scans, zoo

ROOT = Path(__file__).parent.parent


pytestmark = pytest.mark.usefixtures("as_users_have_it")


def test_quick_benchmark_runs_and_all_agree(tmp_path, capsys):
    program.main(["--quick", "--cells", "gru", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "benchmark.json").read_text())
    rows = found["rows"]
    assert {row["table"] for row in rows} >= {"exact", "boundaries", "interop", "truncated, k1 = k2 = 4"}
    assert {row["cell"] for row in rows} == {"gru", "nnx gru", "equinox gru"}
    differences = [contender["difference"] for row in rows for contender in row["contenders"][1:]]
    assert len(differences) >= 13
    assert 0 < np.max(differences) <= 1e-5
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("benchmark.png", "means.png"))
    assert "Geometric means" in capsys.readouterr().out


def test_times_draws_a_group_of_bars_for_each_task():
    times = {"elman": {"jax.grad": 1.5, "torch": 0.75}, "gru": {"jax.grad": 2.0}}
    (ax,) = picture.bars(times).axes
    assert [bar.get_y() + bar.get_height() for bar in ax.patches] == [1.5, 2.0, 0.75]
    assert {bar.get_y() for bar in ax.patches} == {1}
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert [round(centre) for centre in centres] == [0, 1, 0]
    assert len({to_hex(bar.get_facecolor()) for bar in ax.patches}) == 2
    assert [label.get_text() for label in ax.get_xticklabels()] == ["elman", "gru"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "jax.grad", "torch"]
    assert ax.get_yscale() == "log"


def test_what_is_for_a_device_runs_on_any(tmp_path, capsys):
    program.main(["--quick", "--device", "--cells", "elman", "lstm", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert [row["table"] for row in rows] == 2 * ["on a device"] + 2 * ["truncated, k1 = k2 = 4"]
    names = [contender["name"] for contender in rows[0]["contenders"]]
    assert names[:6] == ["ours", *(f"scan, unroll {n}" for n in (1, 4, 8, 16)), "products hoisted, unroll 8"]
    assert "| spikes, ALIF |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "exact", "--device"], "argument --only: found with --device, expected one or the other"),
        (["--only", "everything"], "argument --only: invalid choice: 'everything'"),
        (["--repeats", "0"], "argument --repeats: found 0, expected at least 1"),
    ],
)
def test_unknown_options_are_named(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        program.main([*options, "--out", str(tmp_path / "none")])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_scans_beside_each_other(capsys):
    scans.main(["--quick", "--repeats", "1"])
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]] == ["elman", "gru", "lstm"]


def test_those_of_a_gpu(capsys):
    gpu.main(["--quick", "--repeats", "1"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == ["elman", "minGRU", "LRU"]


def test_two_devices(capsys):
    devices.main(["--quick", "--repeats", "1"])
    assert capsys.readouterr().out.splitlines()[2].startswith("| gru | 12, 4, 3, 5, 2 |")


@pytest.mark.parametrize("options", [[], ["--scan"]])
def test_the_zoo(options, capsys):
    zoo.main(["--quick", "--only", "spikes", *options])
    kinds = [row.split(" | ")[0] for row in capsys.readouterr().out.splitlines()[2:-1]]
    assert kinds == ["| spikes, LIF, 16 steps", "| spikes, LIF, 256 steps", "| spikes, ALIF"]


def test_a_checkout_beside_itself(tmp_path, unoptimised):
    options = "--quick", "--cells", "elman", "--repeats", "1", "--compilations", "1"
    done = _checkouts(str(ROOT), *options)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == 4  # exact, truncated, and a reset or none
    for row in rows:
        _, memory, _ = map(float, row[44:68].split())
        assert memory == 1
    (tmp_path / "empty").mkdir()
    done = _checkouts(str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "other: found no package jax_bptt" in done.stderr


def _checkouts(*options):
    """In a process of its own, since each checkout is."""
    command = [sys.executable, "-m", "tests.benchmarks.checkouts", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
