"""Saving and resuming, by the functions and by the command, killed at random moments."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jax_bptt as jb
from jax_bptt import checkpoint
from jax_bptt.command import main, text
from jax_bptt.engine.leaves import is_key

SETTINGS = {"cell": "gru", "steps": 3, "lr": 0.1}
KILLS = {"default": 1, "thorough": 24}[os.environ.get("HYPOTHESIS_PROFILE", "default")]


def make_tree():
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    carry = (
        jnp.ones((2, 1), jnp.bfloat16),
        {"key": jax.random.split(jax.random.key(1), 2), "t": jnp.zeros(2, "int32")},
    )
    return jb.training.init(params, optax.adam(0.1), carry), np.array([0.5, np.nan])


@pytest.fixture
def tree():
    return make_tree()


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def save(directory, tree, steps=(1, 2, 3), settings=SETTINGS):
    with checkpoint.saver(directory, settings) as saved:
        for step in steps:
            saved(step, tree)


def test_what_was_saved_last_comes_back_bit_for_bit(tree, tmp_path):
    save(tmp_path / "c", tree, steps=(1, 2))
    state, bits = tree
    newer = state._replace(params=jax.tree.map(lambda p: p + 1, state.params)), bits
    save(tmp_path / "c", newer, steps=(5,))
    before = contents(tmp_path)
    step, found = checkpoint.restore(tmp_path / "c", SETTINGS, tree)
    assert step == 5
    assert jax.tree.structure(found) == jax.tree.structure(newer)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(newer), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert contents(tmp_path) == before
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "5"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_restored_on_another_number_of_devices(before, after, tmp_path):
    """Where training goes on is for `like` to say, leaf by leaf."""

    def on(count, tree):
        if count == 1:
            return jax.device_put(tree, jax.devices()[0])
        everywhere, along = (
            NamedSharding(jax.make_mesh((count,), ("batch",)), PartitionSpec(*axes)) for axes in ((), ("batch",))
        )
        state, bits = jax.device_put(tree, everywhere)
        return state._replace(carry=jax.device_put(state.carry, along)), bits

    tree = make_tree()
    save(tmp_path, on(before, tree))
    like = on(after, jax.tree.map(lambda a: a if is_key(a) else jnp.zeros_like(a), tree))
    _, found = checkpoint.restore(tmp_path, SETTINGS, like)
    for a, b, where in zip(*map(jax.tree.leaves, (found, tree, like)), strict=True):
        assert a.sharding.is_equivalent_to(where.sharding, a.ndim)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert len(found[0].carry[0].sharding.device_set) == after


def test_where_there_is_none_there_is_none(tree, tmp_path):
    assert checkpoint.restore(tmp_path / "nothing", SETTINGS, tree) is None
    assert checkpoint.restore(tmp_path, SETTINGS, tree) is None
    (tmp_path / f"7{checkpoint.TEMPORARY}-123").mkdir()
    assert checkpoint.restore(tmp_path, SETTINGS, tree) is None


def test_other_settings_are_named(tree, tmp_path):
    save(tmp_path / "c", tree)
    message = "found a checkpoint of another run in .*: cell was 'gru' and is 'lstm', lr was 0.1 and is 0.2$"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "c", SETTINGS | {"cell": "lstm", "lr": 0.2}, tree)


def spoil(path):
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(bytes(data))


def refusals(directory):
    """How many damages to a checkpoint are refused; any other leaves what comes back as it was."""
    tree, refused = make_tree(), 0
    for file in [p.relative_to(directory) for p in directory.rglob("*") if p.is_file() and p.stat().st_size]:
        for change in (spoil, lambda path: path.write_bytes(b""), lambda path: path.unlink()):
            broken = directory.parent / "broken"
            shutil.copytree(directory, broken)
            change(broken / file)
            before = contents(broken)
            try:
                _, found = checkpoint.restore(broken, SETTINGS, tree)
            except ValueError:
                refused += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, found[0].params, tree[0].params)
                np.testing.assert_array_equal(found[1], tree[1])
            assert contents(broken) == before
            shutil.rmtree(broken)
    return refused


def test_any_damage_is_refused_and_nothing_is_touched(tree, tmp_path):
    save(tmp_path / "sound", tree, steps=(3,))
    # In a process of its own: orbax leaves coroutines behind when it cannot read a file.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        assert process.submit(refusals, tmp_path / "sound").result() >= 10


def test_killed_while_an_old_one_is_deleted(tree, tmp_path, monkeypatch):
    for removed in range(5):

        def killed(path, *_, removed=removed, rmtree=shutil.rmtree, **__):
            (old,) = [entry for entry in (Path(path), *Path(path).iterdir()) if entry.name == "1"]
            for entry in sorted(old.iterdir(), reverse=True)[:removed]:
                rmtree(entry) if entry.is_dir() else entry.unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path / str(removed), tree, steps=(1, 2, 3))
        step, _ = checkpoint.restore(tmp_path / str(removed), SETTINGS, tree)
        assert step == 3
        save(tmp_path / str(removed), tree, steps=(4,))
        assert sorted(path.name for path in (tmp_path / str(removed)).iterdir()) == ["3", "4"]


@pytest.mark.parametrize("entry", ["notes.txt", "12", "model"])
def test_a_directory_of_something_else_is_refused(entry, tree, tmp_path):
    if entry == "notes.txt":
        (tmp_path / entry).write_text("mine")
    else:
        (tmp_path / entry).mkdir()
        (tmp_path / entry / "weights").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"found {entry} in .*, expected checkpoints of this command and nothing else"):
        checkpoint.restore(tmp_path, SETTINGS, tree)
    assert contents(tmp_path) == before


def test_a_file_is_no_directory(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"found the file .*, expected a directory"):
        checkpoint.restore(tmp_path / "file", SETTINGS, tree)


# By the command.

SMALL = ["--hidden", "8", "--embedding", "4", "--chunk", "8", "--batch", "4", "--sample", "0", "--k1", "4", "--k2", "6"]
RUN = [*SMALL, "--steps", "200", "--every", "7", "--online"]


@pytest.fixture(scope="module")
def small_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text(text.python_reference()[:20_000], encoding="utf-8")
    return str(path)


def start(small_text, directory, *more):
    code = [sys.executable, "-m", "jax_bptt", "--text", small_text, *RUN, "--checkpoint", "c", "--log", "log", *more]
    return subprocess.Popen(code, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_and_resumed_ends_as_if_it_had_not_been(small_text, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with start(small_text, whole) as process:
        begun = time.perf_counter()
        out, errors = process.communicate(timeout=300)
        lasted = time.perf_counter() - begun
    assert process.returncode == 0, errors
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        with start(small_text, killed) as process:
            try:
                process.communicate(timeout=rng.uniform(0.3, 0.8) * lasted)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
        if process.returncode == 0:  # it came to its end before it was killed: begin again
            shutil.rmtree(killed / "c")
    with start(small_text, killed) as process:
        out_killed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert _end(killed) == _end(whole)
    assert _table(out_killed) == _table(out)
    logs = [[line.split('"seconds"')[0] for line in (d / "log").read_text().splitlines()] for d in (whole, killed)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 200


def _end(directory):
    """The digest of all that training changed, after the last step."""
    return json.loads((directory / "c" / "200" / "settings" / "metadata").read_text())["digest"]


def _table(out):
    return out[out.index("Held-out text") : out.index("picture")]


def test_resume_wants_a_checkpoint_and_a_directory(small_text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for more, message in (
        (["--resume"], "--resume: found no --checkpoint, expected the directory to go on from"),
        (["--resume", "--checkpoint", "none"], "--resume: found no checkpoint in none, expected one to go on from"),
        (["--checkpoint", "mine"], "--checkpoint: found notes.txt in mine, expected checkpoints of this command"),
        (["--checkpoint", small_text], "where nothing can be written: Not a directory"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["--text", small_text, *SMALL, *more])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
