"""The command, as a user runs it."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from jax_bptt import __main__ as command
from jax_bptt import text

COMMAND = [sys.executable, "-m", "jax_bptt"]
SMALL = ["--hidden", "12", "--embedding", "6", "--chunk", "16", "--batch", "8", "--sample", "60"]
NUMBER = r"\d+\.\d+"


@pytest.fixture(scope="module", autouse=True)
def _shared_compilations(tmp_path_factory):
    """What one run of the command has compiled, the next ones of the same sizes need not compile again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compilations")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture
def small_text(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text(text.python_reference()[:30_000] + "\x1b[31m\x07\ttab é", encoding="utf-8")
    return str(path)


def run(*arguments, cwd, **more):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=500, **more
    )


def held_out(out: str) -> dict[str, float]:
    """The figures of the closing table, by model."""
    table = out[out.index("Held-out text") :]
    rows = re.findall(rf"│ ([a-z ]+?) +│ +({NUMBER}) │", table)
    return {name: float(bits) for name, bits in rows}


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
        rf"^step +(\d+) of 30: {NUMBER} bits per character, [\d,]+ characters/s, \d+ s left$", done.stdout, re.M
    )
    assert [int(step) for step in steps] == list(range(3, 31, 3))
    bits = held_out(done.stdout)
    corpus = text.corpus(text.read(small_text))
    assert bits["interpolated trigram"] == pytest.approx(text.trigram_bits(corpus), abs=5e-4)
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
    told = re.findall(rf"^step +20 of 20: ({NUMBER}) bits per character", done.stdout, re.M)
    assert float(told[0]) == pytest.approx(np.mean(bits), abs=1e-3)


def test_a_seed_repeats_a_run(small_text, tmp_path):
    arguments = ["--text", small_text, *SMALL, "--cell", "elman", "--steps", "8", "--seed"]
    first, again, other = (run(*arguments, seed, cwd=tmp_path).stdout for seed in ("3", "3", "4"))
    assert held_out(first) == held_out(again)
    assert _sample(first) == _sample(again)
    assert held_out(first) != held_out(other)


def _sample(out: str) -> str:
    return out[out.index("Sample at") : out.index("picture:")]


def test_a_third_of_the_default_run_ends_below_the_trigram(tmp_path):
    done = run("--steps", "600", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bits = held_out(done.stdout)
    assert bits["this gru"] < bits["interpolated trigram"] < bits["bigram"] < bits["unigram"]
    assert bits["this gru"] < 2.0


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


def test_live_progress_on_a_terminal(small_text, tmp_path):
    primary, secondary = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    with subprocess.Popen(
        [*COMMAND, "--text", small_text, *SMALL, "--steps", "600"],
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
    last = [line for line in re.split(r"[\r\n]+", plain) if "600/600" in line][-1]
    assert len(last) <= 80
    for figure in (rf"{NUMBER} bits", r"[\d,]+ chars/s", r"0:00:\d\d"):
        assert re.search(figure, last), last


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


@pytest.mark.parametrize("file", ["missing", "empty", "short", "undecodable", "directory"])
def test_a_text_that_cannot_be_learnt(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("too short a text")
    (tmp_path / "undecodable").write_bytes(b"caf\xe9" * 1000)
    (tmp_path / "directory").mkdir()
    message = {
        "missing": "--text: cannot read missing: No such file or directory",
        "empty": "--text: found empty empty, expected some text",
        "short": "--text: found 14 characters to train on, expected at least 2049 for one chunk of 64 steps",
        "undecodable": "--text: undecodable: found byte 0xe9 at offset 3, expected UTF-8 text",
        "directory": "--text: cannot read directory: Is a directory",
    }[file]
    _refuses(["--text", file], message, capsys)
    assert not (tmp_path / "jax_bptt_report.png").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/report.png", "--out: found no directory nowhere to write in"),
        (".", "--out: found ., expected a name that ends in one of"),
        ("report.docx", "--out: found report.docx, expected a name that ends in one of"),
        ("folder.png", "--out: found the directory folder.png, expected a file name"),
        ("/proc/report.png", "--out: found /proc/report.png, which cannot be written"),
    ],
)
def test_an_out_that_cannot_be_written(out, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    _refuses(["--out", out], message, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "--hidden: found 0, expected a whole number of at least 1"),
        (["--steps", "many"], "--steps: found many, expected a whole number of at least 1"),
        (["--sample", "-1"], "--sample: found -1, expected a whole number of at least 0"),
        (["--lr", "nan"], "--lr: found nan, expected a positive number"),
        (["--k1", "0"], "--k1: found 0, expected a whole number of at least 1"),
        (["--k1", "8", "--k2", "4"], "--k2: found 4, expected at least --k1, which is 8"),
        (["--exact", "--k2", "8"], "--exact: found with --k1 or --k2, expected one or the other"),
        (["--exact", "--online"], "--exact: found with --online, expected one or the other"),
        (["--online", "--k1", "24"], "--chunk: found 64, expected a multiple of --k1, which is 24"),
        (["--log", "nowhere/log"], "--log: found no directory nowhere to write in"),
        (["--checkpoint", "/proc/checkpoints"], "--checkpoint: found /proc/checkpoints, where nothing can be written"),
        (["--optimizer", "newton"], "--optimizer: invalid choice: 'newton'"),
        (["digits", "--k2", "0"], "--k2: found 0, expected a whole number of at least 1"),
        (["digits", "--out", "digits.docx"], "--out: found digits.docx, expected a name that ends in one of"),
        (["digits", "--chunk", "3"], "unrecognized arguments: --chunk 3"),
        (["--cell", "transformer"], "--cell: invalid choice: 'transformer'"),
        (["--chunk", "1000000"], "expected at least 32000001 for one chunk of 1000000 steps"),
    ],
)
def test_arguments_out_of_range(arguments, message, capsys):
    _refuses(arguments, message, capsys)


def _refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_of_digits_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["digits", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    options = set(re.findall(r"^  (?:-h, )?(--[a-z0-9]+)", out, re.M))
    assert options == {
        *("--help", "--version", "--cell", "--hidden", "--k2", "--epochs", "--batch"),
        *("--optimizer", "--lr", "--clip", "--seed", "--out"),
    }
    assert out.count("(default: ") == len(options) - 2


def test_digits_need_credit_that_travels_the_whole_way(tmp_path):
    done = run("digits", "--k2", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = re.findall(rf"│ (exact|truncated, k2 = 4) +│ +({NUMBER}) % │", done.stdout)
    told = {name: float(share) for name, share in rows}
    assert told["exact"] >= 95
    assert told["truncated, k2 = 4"] <= told["exact"] - 15
    assert "of test images told right, " in done.stdout
    assert imread(tmp_path / "jax_bptt_digits.png").shape[2] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["jax_bptt_digits.png"]


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    options = set(re.findall(r"^  (?:-h, )?(--[a-z0-9]+)", out, re.M))
    assert options == {
        *("--help", "--version", "--text", "--chunk", "--batch", "--cell", "--hidden", "--layers", "--embedding"),
        *("--k1", "--k2", "--exact", "--steps", "--online", "--optimizer", "--lr", "--clip", "--seed"),
        *("--checkpoint", "--every", "--resume", "--log", "--sample", "--temperature", "--out"),
    }
    assert out.count("(default: ") == len(options) - 2
    assert "Ctrl-C" in out


def test_what_is_missing_is_named(tmp_path):
    for module in ("rich", "matplotlib"):
        code = f"import sys; sys.modules['{module}'] = None; from jax_bptt.__main__ import main; sys.exit(main([]))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 1
        assert "the command needs pip install 'jax_bptt[cli]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_installed_script_is_the_command():
    script = Path(sys.executable).parent / "jax-bptt"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert re.fullmatch(r"jax_bptt \S+, jax \S+\n", done.stdout)
