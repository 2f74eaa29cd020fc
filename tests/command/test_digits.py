import re

from matplotlib.image import imread

from command.processes import NUMBER, run


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
