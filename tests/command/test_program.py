import re
import subprocess
import sys
from pathlib import Path


def test_what_is_missing_is_named(tmp_path):
    for name, extra, arguments in (
        ("rich.console", "cli", []),
        ("matplotlib.figure", "cli", []),
        ("sklearn.datasets", "cli", ["digits"]),
        ("orbax.checkpoint", "checkpoint", ["--checkpoint", "c"]),
    ):
        done = _without([name.split(".")[0]], arguments, tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            f"jax-bptt: found no module {name}, which the command needs: pip install 'jax_bptt[{extra}]'\n"
        )


def test_help_is_there_without_any_extra(tmp_path):
    for arguments in (["--help"], ["digits", "--help"]):
        done = _without(["rich", "matplotlib", "sklearn", "orbax"], arguments, tmp_path)
        assert done.returncode == 0
        assert "pip install 'jax_bptt[cli]'" in done.stdout


def _without(modules, arguments, cwd):
    """The command where some modules are not installed."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({modules}))"
    code = f"{hidden}; from jax_bptt.__main__ import main; sys.exit(main({arguments}))"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=100)


def test_the_installed_script_is_the_command():
    script = Path(sys.executable).parent / "jax-bptt"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert re.fullmatch(r"jax_bptt \S+, jax \S+\n", done.stdout)
