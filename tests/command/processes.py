"""The command as a process, and what its output says."""

import re
import subprocess
import sys

COMMAND = [sys.executable, "-m", "jax_bptt"]
SMALL = ["--hidden", "12", "--embedding", "6", "--chunk", "16", "--batch", "8", "--sample", "60"]
NUMBER = r"\d+\.\d+"


def run(*arguments, cwd, **more):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=500, **more
    )


def held_out(out: str) -> dict[str, float]:
    """The figures of the closing table, by model."""
    table = out[out.index("Held-out text") :]
    rows = re.findall(rf"│ ([a-z ]+?) +│ +({NUMBER}) │", table)
    return {name: float(bits) for name, bits in rows}
