"""Saving and resuming by the command, killed at random moments."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from command.processes import COMMAND, run
from jax_bptt.command import main, text

KILLS = {"default": 1, "thorough": 24}[os.environ.get("HYPOTHESIS_PROFILE", "default")]
SMALL = ["--hidden", "8", "--embedding", "4", "--chunk", "8", "--batch", "4", "--sample", "0", "--k1", "4", "--k2", "6"]
STEPS = 80
RUN = [*SMALL, "--steps", str(STEPS), "--every", "7", "--online"]


@pytest.fixture(scope="module")
def small_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text(text.python_reference()[:20_000], encoding="utf-8")
    return str(path)


def start(small_text, directory, *more):
    arguments = ["--text", small_text, *RUN, "--checkpoint", "c", "--log", "log", *more]
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_killed_at_any_moment_and_resumed_ends_as_if_it_had_not_been(small_text, tmp_path, unoptimised):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with start(small_text, whole) as process:
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        if _is_killed(small_text, killed, rng):
            kills += 1
        else:  # it came to its end before it was killed: begin again
            shutil.rmtree(killed / "c")
    with start(small_text, killed) as process:
        out_killed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert _end(killed) == _end(whole)
    assert _table(out_killed) == _table(out)
    logs = [[line.split('"seconds"')[0] for line in (d / "log").read_text().splitlines()] for d in (whole, killed)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 80
    _is_lengthened(small_text, killed)


def _is_killed(small_text, directory, rng):
    """Start it, and kill it after so many lines of its log as are drawn, and a moment more; whether it still ran."""
    log, after = directory / "log", rng.randrange(STEPS)
    with start(small_text, directory) as process:
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") > after):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return process.returncode == -signal.SIGKILL


def _is_lengthened(small_text, directory):
    done = run("--text", small_text, *SMALL, "--online", "--steps", "83", "--checkpoint", "c", cwd=directory)
    assert done.returncode == 0, done.stderr
    assert "going on from step 80 of 83" in done.stdout
    assert (directory / "c" / "83").is_dir()
    done = run("--text", small_text, *SMALL, "--online", "--steps", "82", "--checkpoint", "c", cwd=directory)
    assert done.returncode == 2
    assert "steps was 83 and is 82" in done.stderr


def _end(directory):
    """The digest of all that training changed, after the last step."""
    return json.loads((directory / "c" / "80" / "settings" / "metadata").read_text())["digest"]


def _table(out):
    return out[out.index("Held-out text") : out.index("picture")]


def test_resume_wants_a_checkpoint_and_a_directory(small_text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for more, message in (
        (["--resume"], "--resume: found no --checkpoint, expected the directory to go on from"),
        (["--resume", "--checkpoint", "none"], "--resume: found no checkpoint in none, expected one to go on from"),
        (["--checkpoint", "mine"], "--checkpoint: found notes.txt in mine, expected checkpoints and nothing else"),
        (["--checkpoint", small_text], "where nothing can be written: Not a directory"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["--text", small_text, *SMALL, *more])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
