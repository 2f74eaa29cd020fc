"""Save and resume: what training changes, as a pytree of arrays, in a directory of numbered checkpoints.

    found = restore(directory, settings, like)        (step, tree) of the newest one; None where there is none
    found = newest(directory)                         (step, settings) of it
    with saver(directory, settings) as save:
        save(step, tree)

A checkpoint is there whole or not at all, whenever the process is killed: orbax writes it under another name and then
renames it, and an old one is renamed before it is deleted. It bears the settings of what was trained and a digest of
its arrays, so that a directory of something else, or one that was damaged, is refused; `restore` never writes.

Needs orbax: `pip install 'jax_bptt[checkpoint]'`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_bptt.engine.leaves import is_key

TEMPORARY = ".orbax-checkpoint-tmp"
"""In the names of what orbax is about to write, or was when it was killed."""

DELETED = f"deleted{TEMPORARY}"
"""Where old checkpoints are moved to be deleted, which takes a while in which the process may be killed, too."""


def restore(directory: str | Path, settings: Mapping[str, Any], like: Any) -> tuple[int, Any] | None:
    """The newest checkpoint of a directory.

    Args:
        directory: where checkpoints are, if there are any.
        settings: what was trained, as `saver` was given it: a dict that JSON can hold.
        like: a pytree of arrays, of the structure, shapes and dtypes of the one saved.

    Returns:
        Its step, and the tree; None where the directory does not exist or has no checkpoint.

    Raises:
        ValueError: if there is anything but checkpoints in the directory, if the newest was made with other settings,
            or if it is damaged.
    """
    found = _newest(directory)
    if found is None:
        return None
    path, (step, saved, digest) = Path(directory), found
    wanted = json.loads(json.dumps(settings))
    if saved != wanted:
        others = [name for name in sorted({*saved, *wanted}) if saved.get(name) != wanted.get(name)]
        raise ValueError(
            f"found a checkpoint of another run in {path}: "
            + ", ".join(f"{name} was {saved.get(name)!r} and is {wanted.get(name)!r}" for name in others)
        )
    tree = _read(path, step, state=ocp.args.StandardRestore(like)).state
    if _digest(tree) != digest:
        raise _damaged(path, step)
    return step, tree


def newest(directory: str | Path) -> tuple[int, dict[str, Any]] | None:
    """What the newest checkpoint of a directory was made of, without its arrays.

    Returns:
        Its step, and the settings that `saver` was given; None where the directory does not exist or has no checkpoint.

    Raises:
        ValueError: if there is anything but checkpoints in the directory, or if the newest is damaged.
    """
    found = _newest(directory)
    return None if found is None else found[:2]


@contextmanager
def saver(directory: str | Path, settings: Mapping[str, Any]) -> Iterator[Callable[[int, Any], None]]:
    """A function `save(step, tree)`, which keeps the newest two checkpoints; `restore` wants the same settings."""
    path = Path(directory).resolve()
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, todelete_subdir=DELETED)
    with ocp.CheckpointManager(path, options=options) as manager:

        def save(step: int, tree: Any) -> None:
            described = {"settings": dict(settings), "digest": _digest(tree)}
            manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), settings=ocp.args.JsonSave(described))
            )
            if (path / DELETED).exists():
                shutil.rmtree(path / DELETED)

        yield save


def _newest(directory: str | Path) -> tuple[int, dict[str, Any], str] | None:
    """Step, settings and digest of the newest checkpoint."""
    path = Path(directory)
    if not path.exists():
        return None
    if not path.is_dir():
        raise ValueError(f"found the file {path}, expected a directory")
    names = sorted(entry.name for entry in path.iterdir() if TEMPORARY not in entry.name)
    foreign = [name for name in names if not name.isdecimal() or not (path / name / "settings").is_dir()]
    if foreign:
        raise ValueError(f"found {foreign[0]} in {path}, expected checkpoints of this command and nothing else")
    if not names:
        return None
    step = max(map(int, names))
    described = _read(path, step, settings=ocp.args.JsonRestore()).settings
    try:
        return step, described["settings"], described["digest"]
    except (KeyError, TypeError) as error:
        raise _damaged(path, step) from error


def _read(path: Path, step: int, **parts: Any) -> Any:
    """Some parts of a checkpoint."""
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        return checkpointer.restore(path.resolve() / str(step), args=ocp.args.Composite(**parts))
    except Exception as error:  # whatever orbax makes of what it finds
        raise _damaged(path, step) from error


def _damaged(path: Path, step: int) -> ValueError:
    return ValueError(
        f"found {path / str(step)} damaged; remove it to go on from an earlier checkpoint, if there is one"
    )


def _digest(tree: Any) -> str:
    """SHA-256 of all arrays, their dtypes and shapes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
