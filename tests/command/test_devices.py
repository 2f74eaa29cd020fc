"""Which devices streams are divided among. (In a process of tests JAX has two.)"""

import jax
import numpy as np
import optax
import pytest

import jax_bptt as jb
from jax_bptt.command import devices


def refuse(message):
    raise SystemExit(message)


@pytest.mark.parametrize(
    ("asked", "batch", "count"), [(None, 32, 2), (None, 16, 2), (None, 15, 1), (None, 17, 1), (2, 2, 2), (1, 32, 1)]
)
def test_how_many(asked, batch, count):
    mesh = devices.over(asked, batch, refuse)
    assert (1 if mesh is None else mesh.size) == count


def test_state_is_placed_and_comes_back():
    mesh = devices.over(2, 4, refuse)
    state = jb.training.init({"w": np.arange(6.0)}, optax.adam(0.1), np.ones((4, 3)))
    there = devices.placed(state, mesh)
    assert there.carry.sharding.spec[0] == devices.AXIS
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(there._replace(carry=None)))
    back = devices.on_one(there)
    assert all(len(leaf.sharding.device_set) == 1 and not leaf.committed for leaf in jax.tree.leaves(back))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert devices.placed(state, None) is state
