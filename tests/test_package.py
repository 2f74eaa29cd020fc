"""The package as it is installed: its version, what it imports, what it says where an extra is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax_bptt as jb

ROOT = Path(__file__).parent.parent


def test_one_version_and_one_address():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert re.search(rf"^version: {re.escape(jb.__version__)}$", citation, re.MULTILINE)
    assert f'repository-code: "{urls["Homepage"]}"' in citation
    assert f"## {jb.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=100)


def test_what_needs_more_than_jax_is_not_imported_until_it_is_used():
    code = """
import inspect, sys, jax_bptt as jb
assert not {"optax", "matplotlib", "orbax", "rich", "sklearn", "flax"} & {name.split(".")[0] for name in sys.modules}
assert inspect.getmembers(jb)
assert jb.losses.squared_error and jb.training.evaluate and "optax" in sys.modules
assert jb.plots.credit_matrix and "matplotlib" in sys.modules
assert jb.checkpoint.restore and "orbax" in sys.modules
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr


def test_missing_extras_are_named():
    for name, module in (("plots", "matplotlib"), ("checkpoint", "orbax")):
        done = _python(f"import sys, jax_bptt as jb; sys.modules['{module}'] = None; jb.{name}")
        assert re.search(
            rf"^ModuleNotFoundError: jax_bptt.{name} needs {module}[\w.]*: pip install 'jax_bptt\[{name}\]'$",
            done.stderr,
            re.MULTILINE,
        )
    assert "has no attribute 'nonexistent'" in _python("import jax_bptt; jax_bptt.nonexistent").stderr
