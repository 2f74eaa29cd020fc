"""Training on text, as a user runs it."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import numpy as np
import pytest
from matplotlib.image import imread

from command.processes import COMMAND, NUMBER, SMALL, held_out, run
from jax_bptt.command import ngrams, text


@pytest.mark.parametrize("cell", ["elman", "lstm"])  # a GRU is the default
def test_small_run_from_beginning_to_end(cell, small_text, tmp_path):
    done = run("--text", small_text, *SMALL, "--cell", cell, "--layers", "2", "--steps", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    differences = re.findall(r"│ (?:E|cell\S+) +│ +(\S+) │", done.stdout)
    assert len(differences) == {"elman": 7, "lstm": 11}[cell]
    assert all(float(d) < 1e-5 for d in differences)
    assert re.search(rf"jax.grad +│ +{NUMBER} (ms|s) │ +{NUMBER} MiB", done.stdout)
    steps = re.findall(
        rf"^training: step +(\d+) of 30: {NUMBER} bits per character, [\d,]+ characters/s, \d+ s left$",
        done.stdout,
        re.M,
    )
    assert [int(step) for step in steps] == list(range(3, 31, 3))
    bits = held_out(done.stdout)
    corpus = text.corpus(text.read(small_text))
    assert bits["interpolated trigram"] == pytest.approx(ngrams.trigram_bits(corpus), abs=5e-4)
    assert set(bits) == {"unigram", "bigram", "interpolated trigram", f"this {cell}"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)  # no control character but the line break
    assert imread(tmp_path / "jax_bptt_report.png").shape[:2] == (630, 1650)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jax_bptt_report.png", "small.txt"]


@pytest.mark.parametrize(
    ("arguments", "kind", "far"),
    [
        (["--exact"], "Gradient of 16 steps (exact)", False),
        (["--k1", "1", "--k2", "3"], "Gradient of 10 steps (truncated, k1 = 1, k2 = 3)", True),
        (["--k2", "16"], "Gradient of 16 steps (truncated, k1 = 16, k2 = 16)", True),
    ],
)
def test_exact_and_truncated_gradients(arguments, kind, far, small_text, tmp_path):
    done = run("--text", small_text, *SMALL, "--cell", "elman", "--steps", "4", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kind in done.stdout
    differences = re.findall(r"│ (?:E|cell\S+) +│ +(\S+) │", done.stdout)
    assert len(differences) == 5
    assert all(float(d) < 1e-5 for d in differences)
    told = re.findall(rf"cosine ({NUMBER}), ({NUMBER}) of its norm, difference (\S+) of its norm", done.stdout)
    assert bool(told) == far
    if far:
        cosine, norm, difference = map(float, told[0])
        assert difference**2 == pytest.approx(1 + norm**2 - 2 * norm * cosine, abs=1e-3)
        assert (difference < 1e-5) == ("--k1" not in arguments)  # one window over the whole chunk is exact


def test_online_training_and_its_log(small_text, tmp_path):
    more = ("--online", "--k1", "4", "--k2", "10", "--optimizer", "rmsprop", "--lr", "0.003", "--log", "log.jsonl")
    done = run("--text", small_text, *SMALL, "--steps", "20", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "truncated, k1 = 4, k2 = 10" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert all(line.keys() == {"step", "bits_per_character", "gradient_norm", "seconds"} for line in lines)
    bits, seconds = ([line[name] for line in lines] for name in ("bits_per_character", "seconds"))
    assert sorted(seconds) == seconds
    assert all(line["gradient_norm"] > 0 for line in lines)
    assert np.mean(bits[-5:]) < np.mean(bits[:5])
    told = re.findall(rf"^training: step +20 of 20: ({NUMBER}) bits per character", done.stdout, re.M)
    assert float(told[0]) == pytest.approx(np.mean(bits), abs=1e-3)


def test_a_horizon_that_adapts_is_told_logged_and_drawn(small_text, tmp_path):
    arguments = ["--text", small_text, *SMALL, "--cell", "elman", "--adaptive", "0.3", "--steps", "8"]
    done = run(*arguments, "--devices", "1", "--log", "log.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "truncated, k1 = 4, k2 = 16, the longest horizon" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (horizon,) = {line["horizon"] for line in lines}  # chosen anew every 100
    assert horizon in (4, 8, 16)
    assert f"horizons chosen: {horizon} steps in 8 chunks" in done.stdout
    assert imread(tmp_path / "jax_bptt_report.png").shape[:2] == (630, 2400)


def test_a_seed_repeats_a_run(small_text, tmp_path):
    arguments = ["--text", small_text, *SMALL, "--cell", "elman", "--steps", "8", "--seed"]
    first, again, other = (run(*arguments, seed, cwd=tmp_path).stdout for seed in ("3", "3", "4"))
    assert held_out(first) == held_out(again)
    assert _sample(first) == _sample(again)
    assert held_out(first) != held_out(other)


def test_streams_divided_among_devices_are_learnt_as_on_one(small_text, tmp_path):
    arguments = ["--text", small_text, *SMALL, "--batch", "16", "--steps", "6"]
    told = {}
    for count in (1, 2):
        done = run(*arguments, "--devices", str(count), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert ("runs on 2 devices, 8 streams on each" in done.stdout) == (count == 2)
        assert re.search(rf"jax_bptt on 2 devices +│ +{NUMBER} (ms|s) │ +{NUMBER} MiB", done.stdout) or count == 1
        differences = re.findall(r"│ (?:E|cell\S+) +│ +(\S+) │", done.stdout)
        assert all(float(d) < 1e-5 for d in differences)
        told[count] = held_out(done.stdout)
    assert told[2] == pytest.approx(told[1], abs=2e-3)


def _sample(out: str) -> str:
    return out[out.index("Sample at") : out.index("picture:")]


def test_a_fifth_of_the_default_run_ends_below_the_trigram(tmp_path):
    done = run("--steps", "360", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bits = held_out(done.stdout)
    assert bits["this gru"] < bits["interpolated trigram"] < bits["bigram"] < bits["unigram"]


def test_interrupt_ends_with_what_was_learnt_so_far(small_text, tmp_path):
    with subprocess.Popen(
        [*COMMAND, "--text", small_text, *SMALL, "--steps", "1000000", "--out", "early.png", "--log", "log"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        log, patience = tmp_path / "log", time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < patience:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert errors == ""
    (steps,) = re.findall(r"interrupted after (\d+) of 1000000 steps: this is what was learnt so far", rest)
    assert int(steps) > 0
    bits = held_out(rest)
    assert bits["this gru"] < bits["unigram"] + 2
    assert imread(tmp_path / "early.png").shape[:2] == (630, 1650)


@pytest.mark.parametrize(("width", "more"), [(80, {}), (40, {"NO_COLOR": "1"})])
def test_live_progress_on_a_terminal(width, more, small_text, tmp_path):
    primary, secondary = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "40"} | more
    with subprocess.Popen(
        [*COMMAND, "--text", small_text, *SMALL, "--k1", "32", "--steps", "200"],
        cwd=tmp_path,
        stdout=secondary,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        os.close(secondary)
        shown = _read_terminal(primary)
        assert process.wait() == 0
    assert "\x1b[2K" in shown  # the progress line is drawn again in its place
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    last = [line for line in re.split(r"[\r\n]+", plain) if "200/200" in line][-1]
    for figure in (rf"{NUMBER} bits", r"0:00:\d\d", *([r"[\d,]+ chars/s"] if width == 80 else [])):
        assert re.search(figure, last), last
    told, sample = plain[: plain.index("Sample at")], plain[plain.index("Sample at") :]
    assert max(map(len, re.split(r"[\r\n]+", told))) <= width
    assert "picture: jax_bptt_report.png" in sample
    assert re.findall(r"--k\d \d+ is more than --chunk", " ".join(told.split())) == ["--k1 32 is more than --chunk"]
    assert bool(re.search(r"\x1b\[[\d;]*3\d", shown)) == (not more)  # colours


def _read_terminal(primary: int) -> str:
    parts = []
    with contextlib.suppress(OSError):  # the other end was closed
        while select.select([primary], [], [], 200)[0]:
            part = os.read(primary, 65536)
            if not part:
                break
            parts.append(part)
    os.close(primary)
    return b"".join(parts).decode()
