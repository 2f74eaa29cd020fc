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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_bptt.checks.options import check_count, describe
from jax_bptt.engine.leaves import is_key

TEMPORARY = ".orbax-checkpoint-tmp"
"""In the names of what orbax is about to write, or was when it was killed."""

DELETED = f"deleted{TEMPORARY}"
"""Where old checkpoints are moved to be deleted, which takes a while in which the process may be killed, too."""


def restore(
    directory: str | Path, settings: Mapping[str, Any], like: Any, *, may_differ: Sequence[str] = ()
) -> tuple[int, Any] | None:
    """The newest checkpoint of a directory.

    Args:
        directory: where checkpoints are, if there are any.
        settings: what was trained, as `saver` was given it: a dict of what JSON can hold.
        like: a pytree of arrays, of the structure, shapes and dtypes of the one saved.
        may_differ: names of settings that may be others than those of the checkpoint.

    Returns:
        Its step, and the tree; None where the directory does not exist or has no checkpoint.

    Raises:
        TypeError: if the settings are no dict of what JSON can hold.
        ValueError: if there is anything but checkpoints in the directory, if the newest was made with other settings
            or is of other arrays, or if it is damaged.
    """
    settings, found = _as_json(settings), _newest(directory)
    if found is None:
        return None
    path, (step, described) = Path(directory), found
    _check_settings(path, described["settings"], settings, may_differ)
    _check_like(path / str(step), described, _layout(like))
    tree = _read(path, step, state=ocp.args.StandardRestore(like)).state
    if _digest(tree) != described["digest"]:
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
    return None if found is None else (found[0], found[1]["settings"])


@contextmanager
def saver(
    directory: str | Path, settings: Mapping[str, Any], *, may_differ: Sequence[str] = ()
) -> Iterator[Callable[[int, Any], None]]:
    """A function `save(step, tree)`, which keeps the newest two checkpoints and returns when they are written.

    Args:
        directory: where they go; made if it is not there.
        settings: what is trained, a dict of what JSON can hold; `restore` wants the same.
        may_differ: names of those that may be others than in the checkpoints that are there.

    Raises:
        TypeError: if the settings are no dict of what JSON can hold, or a step is no integer.
        ValueError: if there are checkpoints with other settings in the directory, or anything else; and by `save` if
            a step is not more than that of the newest.
    """
    settings, found = _as_json(settings), _newest(directory)
    if found is not None:
        _check_settings(Path(directory), found[1]["settings"], settings, may_differ)
    path = Path(directory).resolve()
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, todelete_subdir=DELETED)
    with ocp.CheckpointManager(path, options=options) as manager:

        def save(step: int, tree: Any) -> None:
            step, newest_step = check_count("step", step, 0), manager.latest_step()
            if newest_step is not None and step <= newest_step:
                raise ValueError(f"step: found {step}, expected more than {newest_step}, the newest in {path}")
            described = {"settings": settings, "digest": _digest(tree)} | _layout(tree)
            manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), settings=ocp.args.JsonSave(described))
            )
            if (path / DELETED).exists():
                shutil.rmtree(path / DELETED)

        yield save


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"settings: found {describe(settings)}, expected a dict of what JSON can hold") from error


def _check_settings(path: Path, saved: dict[str, Any], wanted: dict[str, Any], may_differ: Sequence[str]) -> None:
    others = [name for name in sorted({*saved, *wanted} - {*may_differ}) if saved.get(name) != wanted.get(name)]
    if others:
        raise ValueError(
            f"found a checkpoint of another run in {path}: "
            + ", ".join(f"{name} was {saved.get(name)!r} and is {wanted.get(name)!r}" for name in others)
        )


def _newest(directory: str | Path) -> tuple[int, dict[str, Any]] | None:
    """Step of the newest checkpoint, and what is told of it: settings, digest and arrays."""
    path = Path(directory)
    if not path.exists():
        return None
    if not path.is_dir():
        raise ValueError(f"found the file {path}, expected a directory")
    names = sorted(entry.name for entry in path.iterdir() if TEMPORARY not in entry.name and entry.name[0] != ".")
    foreign = [name for name in names if not name.isdecimal() or not (path / name / "settings").is_dir()]
    if foreign:
        raise ValueError(f"found {foreign[0]} in {path}, expected checkpoints and nothing else")
    if not names:
        return None
    step = max(map(int, names))
    described = _read(path, step, settings=ocp.args.JsonRestore()).settings
    if not isinstance(described, dict) or not described.keys() >= {"settings", "digest", "arrays", "structure"}:
        raise _damaged(path, step)
    return step, described


def _read(path: Path, step: int, **parts: Any) -> Any:
    """Some parts of a checkpoint."""
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        return checkpointer.restore(path.resolve() / str(step), args=ocp.args.Composite(**parts))
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # whatever orbax makes of what it finds
        raise _damaged(path, step) from error


def _damaged(path: Path, step: int) -> ValueError:
    return ValueError(
        f"found {path / str(step)} damaged; remove it to go on from an earlier checkpoint, if there is one"
    )


def _layout(tree: Any) -> dict[str, Any]:
    """Its structure, and dtype and shape of each leaf, by where it is."""
    arrays = {
        jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" if hasattr(leaf, "dtype") else type(leaf).__name__
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {"arrays": arrays, "structure": str(jax.tree.structure(tree))}


def _check_like(where: Path, described: dict[str, Any], layout: dict[str, Any]) -> None:
    saved, wanted = described["arrays"], layout["arrays"]
    for name in (*saved, *wanted):
        found, expected = (of.get(name, "nothing") for of in (wanted, saved))
        if found != expected:
            raise ValueError(f"like{name}: found {found}, expected {expected} as in {where}")
    found, expected = layout["structure"], described["structure"]
    if found != expected:
        raise ValueError(f"like: found structure {found}, expected {expected} as in {where}")


def _digest(tree: Any) -> str:
    """SHA-256 of all arrays, their dtypes and shapes."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
