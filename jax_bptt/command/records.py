"""What a run keeps where it is asked to: checkpoints, from which another one can go on, and a log."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.command.language_model import Training
from jax_bptt.training import TrainState

_TOLD = (np.float64, np.int64, np.float64)
"""The dtypes of what `Training` tells of each chunk."""


def find_checkpoint(path: str | None, settings: dict[str, Any], begin: TrainState) -> Training | None:
    """How far training came by the newest checkpoint; None where there is none, or none was asked for.

    Args:
        settings: what was trained; `"steps"` among them, of which a checkpoint may have had fewer: training is
            lengthened then.
    """
    if path is None:
        return None
    from jax_bptt import checkpoint  # needs an extra of its own

    newest = checkpoint.newest(path)
    if newest is None:
        return None
    step, saved = newest
    lengthens = saved.get("steps", settings["steps"]) < settings["steps"]
    like = begin, *(np.zeros(step, dtype) for dtype in _TOLD)
    found = checkpoint.restore(path, settings, like, may_differ=["steps"] if lengthens else [])
    if found is None:
        return None
    state, *told = found[1]
    return Training(jax.tree.map(jnp.asarray, state), *map(np.asarray, told))


@contextmanager
def keep_checkpoints(path: str | None, settings: dict[str, Any]) -> Iterator[Callable[[Training], None]]:
    """Saves how far training came, if that was asked for."""
    if path is None:
        yield lambda training: None
        return
    from jax_bptt import checkpoint

    with checkpoint.saver(path, settings, may_differ=["steps"]) as save:

        def keep(training: Training) -> None:
            save(len(training.bits), tuple(training))

        yield keep


@contextmanager
def keep_log(path: str | None, before: int) -> Iterator[Callable[[int, float, float, int], None]]:
    """Writes a line of JSON for each chunk, if that was asked for; those after the checkpoint gone on from go first."""
    if path is None:
        yield lambda step, bits, gradient_norm, horizon: None
        return
    file, started, kept = Path(path), time.perf_counter(), []
    if before and file.exists():
        kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_told(line) <= before]
    offset = json.loads(kept[-1])["seconds"] if kept else 0.0
    if kept:  # whole at every moment, whenever the process is killed
        beside = file.with_name(f"{file.name}.new")
        beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        beside.replace(file)
    with file.open("a" if kept else "w", encoding="utf-8") as lines:

        def log(step: int, bits: float, gradient_norm: float, horizon: int) -> None:
            seconds = offset + time.perf_counter() - started
            record = {"step": step, "bits_per_character": bits, "gradient_norm": gradient_norm, "seconds": seconds}
            record |= {"horizon": horizon} if horizon else {}
            lines.write(json.dumps(record) + "\n")
            lines.flush()

        yield log


def _step_told(line: str) -> float:
    """The step of a line of the log; infinite for one that a killed process left unfinished."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
