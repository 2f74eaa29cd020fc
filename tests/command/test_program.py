import re
import subprocess
import sys
from pathlib import Path


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
