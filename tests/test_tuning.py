import functools
import json

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb

LOSS = jb.losses.squared_error
CELL = jb.cells.gru(3, 4, 2)
MAKE = functools.partial(jb.bptt, CELL, LOSS)
ARGUMENTS = (CELL.init(jax.random.key(0)), jnp.zeros((2, 4)), jnp.ones((12, 2, 3)), jnp.ones((12, 2, 2)))
FEW = {"save": (None, "states", "boundaries"), "window": (None, 3)}


def test_the_fastest_of_what_was_measured_is_returned():
    told = []
    tuned = jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=3, progress=told.append)
    assert list(tuned.table) == told
    assert [one.options for one in tuned.table[:3]] == [{}, {"save": "states"}, {"save": "boundaries"}]
    assert len(tuned.table) == 4  # none is measured twice
    seconds = [one.seconds for one in tuned.table]
    assert tuned.options == tuned.table[seconds.index(min(seconds))].options
    for one in tuned.table:
        compiled = jax.jit(MAKE(**one.options)).lower(*ARGUMENTS).compile()
        assert one.temporary_bytes == compiled.memory_analysis().temp_size_in_bytes


def test_what_takes_too_much_memory_is_not_run():
    limit = min(one.temporary_bytes for one in jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=1).table)
    tuned = jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=1, memory=limit)
    for one in tuned.table:
        assert (one.seconds is None) == (one.temporary_bytes > limit)
    run = [one for one in tuned.table if one.seconds is not None]
    assert 0 < len(run) < len(tuned.table)
    assert tuned.options == min(run, key=lambda one: one.seconds).options
    assert "not run" in str(tuned)
    with pytest.raises(ValueError, match=r"memory: found a limit of 1 bytes, expected at least \d+, which is"):
        jb.tune(MAKE, *ARGUMENTS, candidates=FEW, memory=1)


def test_options_are_those_that_the_maker_has():
    tuned = jb.tune(functools.partial(jb.truncated_bptt, CELL, LOSS, 3, 3), *ARGUMENTS, repeats=1)
    names = {name for one in tuned.table for name in one.options}
    assert names <= {"save", "parallel"}
    assert "parallel" in names

    def make(**options):
        def total(params, state, xs, _):
            return jb.unroll(CELL, params, state, xs, **options)[1].sum()

        return jax.grad(total)

    tuned = jb.tune(make, *ARGUMENTS, candidates={"window": (3, 4)}, repeats=1)
    assert [one.options for one in tuned.table] == [{}, {"window": 3}, {"window": 4}]


def test_a_cache_is_kept_by_shapes_and_limit():
    cache = {}
    tuned = jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=1, cache=cache)
    kept = json.loads(json.dumps(cache))
    again = jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=1, cache=kept)
    assert again == (tuned.options, ())
    assert str(again).startswith("fastest: ")
    others = (*ARGUMENTS[:2], *(a[:6] for a in ARGUMENTS[2:]))
    assert jb.tune(MAKE, *others, candidates=FEW, repeats=1, cache=kept).table
    assert jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=1, cache=kept, memory=2**30).table
    assert len(kept) == 3


def test_the_table_is_aligned():
    lines = str(jb.tune(MAKE, *ARGUMENTS, candidates=FEW, repeats=1)).splitlines()
    assert lines[1].split() == ["options", "time", "memory", "compile", "time"]
    for title in ("time", "memory", "compile time"):
        place = lines[1].index(title)
        assert all(line[place - 2 : place] == "  " and line[place] != " " for line in lines[2:])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"make": 3}, "make: found 3 of type int, expected a function"),
        ({"memory": 0}, "memory: found 0, expected at least 1"),
        ({"repeats": 0}, "repeats: found 0, expected at least 1"),
        ({"candidates": ["save"]}, "candidates: found .* of type list, expected a mapping"),
        ({"candidates": {"save": ["all"]}}, "save: found 'all', expected one of"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    make = wrong.pop("make", MAKE)
    with pytest.raises((TypeError, ValueError), match=message):
        jb.tune(make, *ARGUMENTS, **wrong)


def test_it_is_not_to_be_traced():
    with pytest.raises(TypeError, match="args: found values that are being traced, expected arrays"):
        jax.jit(lambda *args: jb.tune(MAKE, *args).options)(*ARGUMENTS)
