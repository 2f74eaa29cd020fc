"""Saving and restoring, by the functions; by the command, see tests/command/test_resuming.py."""

import multiprocessing
import shutil
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
from jax_bptt.engine.leaves import is_key

SETTINGS = {"cell": "gru", "steps": 3, "lr": 0.1}


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


def test_the_newest_is_described(tree, tmp_path):
    assert checkpoint.newest(tmp_path / "c") is None
    save(tmp_path / "c", tree, steps=(1, 4))
    assert checkpoint.newest(tmp_path / "c") == (4, SETTINGS)


def test_other_arrays_are_told_from_damage(tree, tmp_path):
    save(tmp_path, tree)
    state, bits = tree
    others = {
        r"like\[0\]\.params\['w'\]: found float64\[3, 3\], expected float64\[2, 3\] as in .*3$": state._replace(
            params={"w": jnp.zeros((3, 3))}
        ),
        r"like\[0\]\.params\['w'\]: found nothing, expected float64\[2, 3\]": state._replace(params={}),
        r"like\[0\]\.params\['w'\]: found float32\[2, 3\], expected float64": state._replace(
            params={"w": jnp.zeros((2, 3), "float32")}
        ),
    }
    others["like: found structure .*, expected "] = state._replace(opt_state=(*state.opt_state, optax.EmptyState()))
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            checkpoint.restore(tmp_path, SETTINGS, (other, bits))


def test_nothing_is_overwritten_or_mixed(tree, tmp_path):
    save(tmp_path, tree, steps=(5,))
    before = contents(tmp_path)
    for settings in (SETTINGS | {"lr": 0.2}, {}):
        with (
            pytest.raises(ValueError, match=r"found a checkpoint of another run in .*: .*lr was 0\.1 and is"),
            checkpoint.saver(tmp_path, settings),
        ):
            pass
    for step, error, message in (
        (5, ValueError, "step: found 5, expected more than 5, the newest in"),
        (3, ValueError, "step: found 3, expected more than 5"),
        (-1, ValueError, "step: found -1, expected at least 0"),
        (6.5, TypeError, "step: found 6.5 of type float, expected an integer"),
    ):
        with checkpoint.saver(tmp_path, SETTINGS) as saved, pytest.raises(error, match=message):
            saved(step, tree)
    assert contents(tmp_path) == before
    with checkpoint.saver(tmp_path, SETTINGS | {"steps": 9}, may_differ=["steps"]) as saved:
        saved(6, tree)
    assert checkpoint.newest(tmp_path) == (6, SETTINGS | {"steps": 9})
    step, _ = checkpoint.restore(tmp_path, SETTINGS, tree, may_differ=["steps"])
    assert step == 6


@pytest.mark.parametrize("settings", [{"f": jnp.tanh}, {"w": np.ones(2)}, "gru"])
def test_settings_are_what_json_can_hold(settings, tree, tmp_path):
    for call in (lambda: checkpoint.restore(tmp_path, settings, tree), checkpoint.saver(tmp_path, settings).__enter__):
        with pytest.raises(TypeError, match=r"settings: found .*, expected a dict of what JSON can hold"):
            call()


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
    with pytest.raises(ValueError, match=f"found {entry} in .*, expected checkpoints and nothing else"):
        checkpoint.restore(tmp_path, SETTINGS, tree)
    assert contents(tmp_path) == before


def test_a_file_is_no_directory(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"found the file .*, expected a directory"):
        checkpoint.restore(tmp_path / "file", SETTINGS, tree)
    with pytest.raises(ValueError, match=r"found the file .*, expected a directory"):
        checkpoint.saver(tmp_path / "file", SETTINGS).__enter__()
