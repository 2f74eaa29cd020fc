import contextlib
import re

from matplotlib.image import imread

from command.processes import NUMBER, run
from jax_bptt.command import main, terminal


def test_digits_need_credit_that_travels_the_whole_way(tmp_path):
    done = run("digits", "--k2", "4", "--epochs", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = re.findall(rf"│ (exact|truncated, k2 = 4) +│ +({NUMBER}) % │", done.stdout)
    told = {name: float(share) for name, share in rows}
    assert told["exact"] >= 95
    assert told["truncated, k2 = 4"] <= told["exact"] - 15
    for name in told:
        lines = re.findall(rf"^{name}: epoch +(\d+) of 30: {NUMBER} % of test images told right, ", done.stdout, re.M)
        assert [int(epoch) for epoch in lines] == list(range(3, 31, 3))
    assert imread(tmp_path / "jax_bptt_digits.png").shape[2] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["jax_bptt_digits.png"]


def test_interrupt_ends_with_what_was_learnt_so_far(tmp_path, capsys, monkeypatch):
    """As if Ctrl-C had been pressed in the first epoch."""
    monkeypatch.setattr(terminal, "interruptible", lambda: contextlib.nullcontext(lambda: True))
    assert main(["digits", "--hidden", "4", "--batch", "256", "--out", str(tmp_path / "early.png")]) == 0
    out = capsys.readouterr().out
    assert "interrupted after 1 epochs: this is what was learnt so far" in out
    assert re.findall(rf"│ (\w.*?) +│ +{NUMBER} % │", out) == ["exact"]
    assert imread(tmp_path / "early.png").shape[2] == 4
