"""What a script finds, and the page that it is written on."""

import contextlib
import importlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
from matplotlib.figure import Figure

Tell = Callable[[str], None]
"""Says how far it came."""


class Result(NamedTuple):
    """What a script found."""

    rows: Sequence[Sequence[str]]  # a table: its head, then its lines
    figure: Figure
    claims: Mapping[str, bool]  # what is claimed, in words with the numbers that were found, and whether it was seen


class Entry(NamedTuple):
    """A script that was run."""

    module: ModuleType
    result: Result
    seconds: float


def run_script(module: ModuleType, tell: Tell) -> Entry:
    """Run one, and tell how long it took."""
    started = time.perf_counter()
    return Entry(module, module.run(tell), time.perf_counter() - started)


def in_double_precision() -> contextlib.AbstractContextManager[None]:
    """Where the default precision is double, and single after it again."""
    before_jax_0_8 = "jax.experimental"
    return (jax if hasattr(jax, "enable_x64") else importlib.import_module(before_jax_0_8)).enable_x64(True)


def write(entries: Sequence[Entry], folder: Path) -> Path:
    """The page, `folder/README.md`, with a picture beside it for each script."""
    folder.mkdir(parents=True, exist_ok=True)
    version = importlib.metadata.version("jax_bptt")
    machine = f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device(s)"
    lines = [
        "# Evidence",
        "",
        "Published results on truncation, from code that anyone can run: `python -m tests.evidence`.",
        f"(This page: jax_bptt {version}, jax {jax.__version__}, {machine}, {time.strftime('%Y-%m-%d')}.)",
    ]
    for module, result, seconds in entries:
        name = module.__name__.rsplit(".", 1)[-1]
        title, _, about = (module.__doc__ or "").partition("\n\n")
        result.figure.savefig(folder / f"{name}.png", dpi=120)
        head, *rows = ("| " + " | ".join(row) + " |" for row in result.rows)
        lines += ["", f"## {title.strip().rstrip('.')}", "", about.strip("\n"), "", head]
        lines += ["|" + " --- |" * len(result.rows[0]), *rows, ""]
        lines += [f"* {claim}" if seen else f"* NOT SEEN: {claim}" for claim, seen in result.claims.items()]
        lines += [
            "",
            f"![{title.strip()}]({name}.png)",
            "",
            f"`python -m tests.evidence --only {name}`, {seconds:.0f} s",
        ]
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
