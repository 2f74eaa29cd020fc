"""The devices that a batch is divided among: on a CPU one for each core.

    mesh = devices.over(asked, batch, refuse)      None where there is but one
    state = devices.placed(state, mesh)            the carry along the batch, all else everywhere
    params = devices.on_one(state.params)          and back

Each device runs its own streams by `jax_bptt.data_parallel`.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_bptt.model import PyTree
from jax_bptt.training import Adaptive, TrainState

AXIS = "batch"

STREAMS = 8
"""Of each device at least, where it is left to us: with fewer, a step's products are too small to divide.

(Measured on two CPU cores, updates of the default model on chunks of 64 steps: of 4, 8, 16, 32 and 64 streams two
devices took 1.18, 0.86, 0.99, 0.87 and 0.67 of the time of one.)
"""


def over(asked: int | None, batch: int, refuse: Callable[[str], NoReturn]) -> Mesh | None:
    """The devices that a batch is divided among, in a mesh of one axis; None where it is not.

    Has to be called before JAX makes an array: it is then that it counts its devices.

    Args:
        asked: how many; None for as many as there are, of which each has `STREAMS` streams at least.
        refuse: what a message about the argument is given to.
    """
    if asked is not None and batch % asked:
        refuse(f"--devices: found {asked}, expected a divisor of --batch, which is {batch}")
    found = _devices(_cores())
    if asked is not None and asked > len(found):
        refuse(f"--devices: found {asked}, expected at most {len(found)}, the devices that there are")
    most = min(len(found), batch // STREAMS)
    count = asked or max((n for n in range(1, most + 1) if batch % n == 0), default=1)
    return Mesh(np.array(found[:count]), (AXIS,)) if count > 1 else None


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices(wanted: int) -> list[Any]:
    """Those that JAX has; on a CPU so many, unless the user said how many, or JAX has begun."""
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not said and jax.config.values["jax_num_cpu_devices"] < 1:
        with contextlib.suppress(RuntimeError):  # JAX has begun, and has those that it has
            jax.config.update("jax_num_cpu_devices", wanted)
    return jax.devices()


def on_one(tree: PyTree) -> PyTree:
    """Arrays that are on one device, and bound to none."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def placed(state: TrainState, mesh: Mesh | None) -> TrainState:
    """What training changes, where it is to be: recurrent state along the batch, all else on every device."""
    if mesh is None:
        return state
    everywhere, along = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    state = jax.device_put(state, everywhere)
    if isinstance(state.carry, Adaptive):
        return state._replace(carry=state.carry._replace(state=jax.device_put(state.carry.state, along)))
    return state._replace(carry=jax.device_put(state.carry, along))
