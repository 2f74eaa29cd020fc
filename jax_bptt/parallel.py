"""A gradient function over a batch that is divided among devices, of one process or of many.

    gradient = data_parallel(bptt(step, loss))          one program, each device its own examples
    (loss, state), grads = gradient(params, state, xs, targets)

Examples have nothing to do with each other but in the sums over them. So each device computes the gradient of its own,
forwards and backwards, and after all loops what has no axis of the batch is added up: loss and gradients of the params,
put together in one vector, by a single all-reduce. What has such an axis stays where it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jax_bptt.checks.options import describe
from jax_bptt.checks.trees import arrays
from jax_bptt.engine.leaves import vary
from jax_bptt.model import OverSequences, PyTree, Result

AXES = {"params": None, "state": 0, "xs": 1, "targets": 1, "mask": 1, "reset": 1, "reset_state": 0, "key": None}
"""Which axis of the arguments is the batch; a mask or reset of `[T]` has none."""


def data_parallel(
    gradient: OverSequences[Result], mesh: Mesh | None = None, axis: str = "batch"
) -> OverSequences[Result]:
    """A gradient function over a batch divided among devices: the same arguments, the same results.

        L = Σ_d L_d,    ∂L/∂θ = Σ_d ∂L_d/∂θ         d: a device, with B/D of the examples

    With `reduction="mean"` each device divides by the weights of all examples, masked ones included, so that the sum is
    the mean over the whole batch. Between devices go, once and after all loops, loss and gradients of the params (and,
    for such a mean with a mask, before them one number, the sum of the weights). States, δ and gradients with respect
    to state and xs stay on the devices of their examples.

    Args:
        gradient: any gradient function of the library: `bptt`, `truncated_bptt`, `state_gradients`, `artbp`,
            `randomized_telescope`, those of `reference`; or another one called like them that adds up, or averages by
            `jax.lax.pmean`, over examples. `training.train_step` takes what is returned.
        mesh: whose devices; None for all that there are, those of other processes included.
        axis: the axis of the mesh along which the batch is divided. Along other ones all devices
            compute the same.

    Returns:
        `gradient(params, state, xs, targets, mask=None, reset=None, reset_state=None, length=None)`, as it was, with
        `key=` where something is drawn: the same on many devices as on one. The params may be anywhere, and their
        gradient is everywhere. Pure, and not jitted: wrap it, or the training step around it, in `jax.jit`. Of many
        processes each calls it, with arrays of the whole batch, as `jax.make_array_from_process_local_data` makes them
        of each one's part.

    Raises:
        TypeError, ValueError: when built, for an argument that is not of this form, and when called, for a batch that
            cannot be divided evenly; else as `gradient`.

    Source:
        J. Dean, G. Corrado, R. Monga et al., "Large scale distributed deep networks", 2012, of which this is the
        synchronous case.
    """
    if not callable(gradient):
        raise TypeError(f"gradient: found {describe(gradient)}, expected a function, such as jax_bptt.bptt makes")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: found {describe(mesh)}, expected a jax.sharding.Mesh, or None for all devices")
    if not isinstance(axis, str):
        raise TypeError(f"axis: found {describe(axis)}, expected the name of an axis of the mesh")
    if mesh is not None and axis not in mesh.axis_names:
        raise ValueError(f"axis: found {axis!r}, expected one of those of the mesh, {mesh.axis_names}")

    def divided(
        params: PyTree,
        state: PyTree,
        xs: PyTree = None,
        targets: PyTree = None,
        mask: Any = None,
        reset: Any = None,
        reset_state: PyTree = None,
        length: int | None = None,
        key: jax.Array | None = None,
    ) -> Any:
        over = jax.make_mesh((jax.device_count(),), (axis,), (AxisType.Auto,)) if mesh is None else mesh
        named = zip(AXES, (params, state, xs, targets, mask, reset, reset_state, key), strict=True)
        given = {name: arrays(name, tree) for name, tree in named if tree is not None}
        _check_batch(given, over.shape[axis], axis)

        def of_part(given: dict[str, PyTree]) -> Any:
            return gradient(**given, length=length)

        if over.shape[axis] == 1:
            return of_part(given)
        return _divide(of_part, given, over, axis)

    return divided


def _divide(of_part: Callable[[dict[str, PyTree]], Any], given: dict[str, PyTree], mesh: Mesh, axis: str) -> Any:
    """`of_part(given)`, of arguments that are divided along the batch, its results put together."""

    def part(a: jax.Array, batch: int | None) -> Any:
        shape = [size // mesh.shape[axis] if i == batch else size for i, size in enumerate(a.shape)]
        return jax.ShapeDtypeStruct(shape, a.dtype)

    leaves, structure = jax.tree.flatten(given)
    axes = [_batch_axis(name, leaf) for name in sorted(given) for leaf in jax.tree.leaves(given[name])]
    parts = jax.tree.unflatten(structure, map(part, leaves, axes))
    made, shapes = (jax.eval_shape(of_part, which) for which in (given, parts))
    whole, result = jax.tree.flatten(made)
    # Where an axis of a result is that of the batch, it is longer for all examples than for those of one device.
    along = [
        next((i for i, sizes in enumerate(zip(a.shape, b.shape, strict=True)) if sizes[0] != sizes[1]), None)
        for a, b in zip(whole, jax.tree.leaves(shapes), strict=True)
    ]
    # What has no derivative is of float0, which no device computes.
    real = [i for i, leaf in enumerate(whole) if leaf.dtype != jax.dtypes.float0]

    def on_a_device(leaves: list[jax.Array]) -> list[jax.Array]:
        leaves = [vary(leaf, frozenset({axis})) for leaf in leaves]
        results = jax.tree.leaves(of_part(jax.tree.unflatten(structure, leaves)))
        summed = iter(_sum([results[i] for i in real if along[i] is None], axis))
        return [next(summed) if along[i] is None else results[i] for i in real]

    def spec(batch: int | None) -> PartitionSpec:
        return PartitionSpec() if batch is None else PartitionSpec(*[None] * batch, axis)

    in_specs, out_specs = ([spec(batch) for batch in axes],), [spec(along[i]) for i in real]
    run = jax.shard_map(on_a_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    computed = dict(zip(real, run(leaves), strict=True))
    filled = [computed[i] if i in computed else np.zeros(a.shape, a.dtype) for i, a in enumerate(whole)]
    return jax.tree.unflatten(result, filled)


def _sum(leaves: list[jax.Array], axis: str) -> list[jax.Array]:
    """Sums over the devices: of all leaves of a dtype in one vector, by one all-reduce."""
    summed: list[Any] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        vector = jax.lax.psum(jnp.concatenate([leaves[i].reshape(leaves[i].size) for i in places]), axis)
        ends = np.cumsum([leaves[i].size for i in places])[:-1]
        for i, piece in zip(places, jnp.split(vector, ends), strict=True):
            summed[i] = piece.reshape(leaves[i].shape)
    return summed


def _batch_axis(name: str, a: jax.Array) -> int | None:
    """The axis of an argument's leaf that is the batch."""
    batch = AXES[name]
    return None if batch is None or (name in ("mask", "reset") and a.ndim < 2) else batch


def _check_batch(given: dict[str, PyTree], devices: int, axis: str) -> None:
    """Refuse a batch that is not divided evenly; all else that may be wrong is for the gradient function to say."""
    for name, tree in given.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            batch = _batch_axis(name, leaf)
            if batch is not None and batch < leaf.ndim and leaf.shape[batch] % devices:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)}: found a batch of {leaf.shape[batch]}, expected a multiple of "
                    f"{devices}, the devices along axis {axis!r} of the mesh"
                )
