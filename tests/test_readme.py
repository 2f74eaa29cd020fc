"""What the README says is true: its code runs, its commands are those that are tested, its names exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax_bptt as jb

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_runs_from_top_to_bottom_and_learns(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (loss,) = re.findall(r"loss (\d\.\d+); that of saying nothing is 0\.5", done.stdout)
    assert float(loss) < 0.1
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"credit_matrix.png", "lag_profile.png", "truncation_bias.png"}
    assert drawn <= set(re.findall(r"\]\(notebooks/pictures/([\w.]+)\)", README))


def test_commands_use_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "    pip install -e '.[all]' && python -m jax_bptt\n    pip install -e '.[test]' && pytest\n" in README
    assert {"all", "test"} <= extras.keys()
    assert "pip install --quiet -e '.[test]' && pytest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_names_exist_and_all_public_names_are_told():
    named = set(re.findall(r"`jb\.([\w.]+)", README))
    for name in named:
        value = jb
        for part in name.split("."):
            value = getattr(value, part)
    assert {name.split(".")[0] for name in named} >= set(jb.__all__)


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`([\w/]+\.(?:md|py))`", README):
        assert (ROOT / target).exists(), target
