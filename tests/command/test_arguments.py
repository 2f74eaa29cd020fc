import re

import pytest

from jax_bptt.command import main


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
        (["--adaptive", "1"], "--adaptive: found 1, expected a number between 0 and 1"),
        (["--adaptive", "0.1", "--exact"], "--adaptive: found with --exact, expected one or the other"),
        (["--adaptive", "0.1", "--online"], "--adaptive: found with --online, expected one or the other"),
        (["--adaptive", "0.1", "--k2", "8"], "--adaptive: found with --k2, expected one or the other"),
        (["--adaptive", "0.1", "--k1", "32"], "--chunk: found 64 with --adaptive, expected 128 or more, four times"),
        (["--adaptive", "0.1", "--chunk", "3"], "--chunk: found 3 with --adaptive, expected 4 or more, four times"),
        (["--seed", "-1"], "--seed: found -1, expected a whole number of at least 0"),
        (["digits", "--seed", "-1"], "--seed: found -1, expected a whole number of at least 0"),
        (["--log", "nowhere/log"], "--log: found no directory nowhere to write in"),
        (["--checkpoint", "/proc/checkpoints"], "--checkpoint: found /proc/checkpoints, where nothing can be written"),
        (["--optimizer", "newton"], "--optimizer: invalid choice: 'newton'"),
        (["digits", "--k2", "0"], "--k2: found 0, expected a whole number of at least 1"),
        (["digits", "--out", "digits.docx"], "--out: found digits.docx, expected a name that ends in one of"),
        (["digits", "--chunk", "3"], "unrecognized arguments: --chunk 3"),
        (["--devices", "3"], "--devices: found 3, expected a divisor of --batch, which is 32"),
        (["--devices", "16", "--batch", "64"], "--devices: found 16, expected at most 2, the devices that there are"),
        (["--devices", "2", "--online"], "--devices: found 2 with --online, expected 1"),
        (["--devices", "0"], "--devices: found 0, expected a whole number of at least 1"),
        (["--cell", "transformer"], "--cell: invalid choice: 'transformer'"),
        (["--chunk", "1000000"], "expected at least 32000001 for one chunk of 1000000 steps"),
    ],
)
def test_arguments_out_of_range(arguments, message, capsys):
    _refuses(arguments, message, capsys)


def _refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    options = set(re.findall(r"^  (?:-h, )?(--[a-z0-9]+)", out, re.M))
    assert options == {
        *("--help", "--version", "--text", "--chunk", "--batch", "--cell", "--hidden", "--layers", "--embedding"),
        *("--k1", "--k2", "--adaptive", "--exact", "--steps", "--online", "--optimizer", "--lr", "--clip", "--seed"),
        *("--devices", "--checkpoint", "--every", "--resume", "--log", "--sample", "--temperature", "--out"),
    }
    assert out.count("(default: ") == len(options) - 2
    assert "Ctrl-C" in out


def test_help_of_digits_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["digits", "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    options = set(re.findall(r"^  (?:-h, )?(--[a-z0-9]+)", out, re.M))
    assert options == {
        *("--help", "--version", "--cell", "--hidden", "--k2", "--epochs", "--batch"),
        *("--optimizer", "--lr", "--clip", "--seed", "--out"),
    }
    assert out.count("(default: ") == len(options) - 2
