"""From a call to what the passes work on, and back: flat leaves, and the step taken apart.

    flat  = flatten_call(call, wanted)      a recurrence, its state and inputs
    grads = unflatten_gradients(…)          cotangents of flat leaves in the structures of the user

The user's pytrees are seen here and nowhere below.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.engine.call import Call, shapes_of_one, vary_data
from jax_bptt.engine.leaves import (
    Leaves,
    combine,
    concrete,
    differentiable,
    expand_dims_like,
    full,
    is_key,
    nbytes,
    only,
    sum_like,
    varying,
    zeros,
)
from jax_bptt.engine.plan import TRANSPOSE_FROM, Solvable, default_bodies, is_small
from jax_bptt.engine.platforms import Bodies
from jax_bptt.engine.step.ends import Ends
from jax_bptt.engine.step.pullback import Pullback, only_forwards, split_pullback
from jax_bptt.engine.step.split import SplitStep, split_step
from jax_bptt.engine.windows import map_leading, vmap_leading
from jax_bptt.model import PyTree


class Inputs(NamedTuple):
    """What comes in at each step."""

    x: Leaves  # [T, B, …]; one at least, which may be of no elements
    reset: jax.Array | None  # [T, B]
    gate: jax.Array | None = None  # [T, B], which is for δ alone

    @property
    def steps(self) -> int:
        return self.x[0].shape[0]


class Reading(NamedTuple):
    """A step as it was read, which holds of any arrays of the same types."""

    parts: SplitStep
    pullback: Pullback


class Recurrence(NamedTuple):
    """A step, as it is run and differentiated: its parts, the weights that it runs with, the transition's pullback."""

    parts: SplitStep
    weights: Leaves
    pullback: Pullback
    state: Leaves  # shapes of the state of one example
    reset_to: Leaves  # what a reset puts the state back to, [B, …]; None for leaves that go on
    batch: tuple[int, ...]  # the axis of the examples, if the step is one of one example
    lanes: tuple[int, ...] = ()  # blocks of time side by side, the axis before it
    bodies: Bodies = Bodies()  # time steps in one body of the loops over them
    solvable: Solvable = Solvable()  # which of those may be no loops

    @property
    def reading(self) -> Reading:
        return Reading(self.parts, self.pullback)

    def with_delta(self, leaves: Leaves) -> Leaves:
        """Of leaves of the state those that have a δ, with None in place of the others."""
        return only(self.pullback.has_delta, leaves)

    @property
    def rows(self) -> int:
        """How many rows a time step multiplies with a weight."""
        return concrete(math.prod(self.batch)) * self.parts.rows

    def over_batch(self, function: Callable, in_axes: Any) -> Callable:
        """`function` of one example, over the batch, and over what is side by side."""
        return self._over(vmap_leading(function, in_axes, self.batch), in_axes, self.lanes)

    def over_rows(self, function: Callable, in_axes: Any, steps: int) -> Callable:
        """`function` of one row, over time and batch."""
        return self._over(self.over_batch(function, in_axes), in_axes, (steps,))

    def _over(self, function: Callable, in_axes: Any, sizes: tuple[int, ...]) -> Callable:
        return (map_leading if self.parts.one_by_one else vmap_leading)(function, in_axes, sizes)

    def put_back(self, reset: jax.Array | None, state: Leaves) -> Leaves:
        """The gate of the forward loop, h ← where(reset, h₀, h), of any axes; `recur` has that of the reverse."""
        return put_back(reset, self.reset_to, state)


def reset_to_of(call: Call) -> Leaves:
    """What a reset puts the leaves of the state back to, `[B, …]`; None for those that go on."""
    if call.reset is None:
        return [None] * len(jax.tree.leaves(call.state))
    zero = [None if is_key(s) else jnp.zeros_like(s) for s in jax.tree.leaves(call.state)]
    return jax.tree.leaves(call.reset_state) or zero


def put_back(reset: jax.Array | None, reset_to: Leaves, state: Leaves) -> Leaves:
    """The state, in examples that are reset that which it is reset to; None is a leaf that goes on."""
    if reset is None:
        return state
    return [
        s if s is None or to is None else jnp.where(expand_dims_like(reset, s), jnp.broadcast_to(to, s.shape), s)
        for to, s in zip(reset_to, state, strict=True)
    ]


class Wrt(NamedTuple):
    """With respect to what the gradient is wanted beside the state: leaves, None where it is not."""

    weights: Leaves
    xs: Leaves
    reset_to: Leaves


class FlatCall(NamedTuple):
    """What the passes work on."""

    recurrence: Recurrence
    wrt: Wrt
    wrt_params: Leaves  # of which the weights are made
    state: Leaves  # [B, …]
    inputs: Inputs
    pull_weights: Callable[[Leaves], PyTree]  # from cotangents of the weights to the gradient of the params

    def unrolled(self, unroll: int | bool | None) -> "FlatCall":
        """The same with so many time steps in one body of the loops, where the user tells it."""
        if unroll is None:
            return self
        return self._replace(recurrence=self.recurrence._replace(bodies=Bodies(unroll, unroll), solvable=Solvable()))

    def after(self, burn_in: int, state: Leaves) -> "FlatCall":
        """What is left after a burn-in to that state, which is a constant."""
        constant = [s if is_key(s) else jax.lax.stop_gradient(s) for s in state]
        inputs, xs = jax.tree.map(lambda a: a[burn_in:], (self.inputs, self.wrt.xs))
        return self._replace(state=constant, inputs=inputs, wrt=self.wrt._replace(xs=xs))


class Wanted(NamedTuple):
    """With respect to what of a call a gradient is wanted: all, nothing, or leaf by leaf."""

    params: bool | Sequence[bool] = False
    xs: bool | Sequence[bool] = False
    reset_state: bool | Sequence[bool] = False
    state: bool | Sequence[bool] = False  # of any step


DELTA = Wanted(state=True)


def flatten_call(
    call: Call,
    wanted: Wanted = DELTA,
    end_bar: Sequence[Any] = (),
    *,
    derive: bool = True,
    earlier: Reading | None = None,
) -> FlatCall:
    """Split the step and prepare the weights.

    Args:
        wanted: with respect to what a gradient is wanted.
        end_bar: of each leaf of the last state, or of none, None where it has no cotangent.
        derive: whether the step is to be differentiated, and not only run.
        earlier: how the step was read already, with arrays of the same types.
    """
    varied = vary_data(call)
    one_params, one_state, one_x = shapes_of_one(varied)
    transpose_from = TRANSPOSE_FROM / concrete(math.prod(call.batch))
    read = call.step, one_params, one_state, one_x
    parts = earlier.parts if earlier else split_step(*read, transpose_from=transpose_from)
    parts = parts.where_counts(call.reads)
    params = jax.tree.leaves(call.params)
    wrt_params = only(_by_leaf(wanted.params, params), differentiable(params))
    places = {i for i, leaf in enumerate(wrt_params) if leaf is not None}

    def prepare(some: Leaves) -> tuple[Leaves, Leaves]:
        weights = parts.prepare(combine(some, params))
        return only([not places.isdisjoint(of) for of in parts.from_params], differentiable(weights)), weights

    trained, pull, weights = jax.vjp(prepare, wrt_params, has_aux=True)

    def pull_weights(weights_bar: Leaves) -> PyTree:
        cast = [bar if w is None else bar.astype(w.dtype) for bar, w in zip(weights_bar, trained, strict=True)]
        return unflatten_like(call.params, pull(cast)[0])

    xs = jax.tree.leaves(varied.xs) or [jnp.zeros((call.steps, *call.batch, 0))]  # of no elements: it tells the steps
    state, shapes = jax.tree.leaves(varied.state), [*jax.tree.leaves(one_state), *parts.once]
    reset_to = [*reset_to_of(varied), *[None] * len(parts.once)]
    state += [full((*call.batch, *leaf.shape), leaf.dtype, varying(leaf)) for leaf in parts.once]
    wrt_xs = only(_by_leaf(wanted.xs, xs), differentiable(xs))
    wrt_reset_to = only(_by_leaf(call.reset_state is not None and wanted.reset_state, state), differentiable(reset_to))
    drive: Leaves = []
    if derive:
        drive = jax.eval_shape(parts.project, weights, jax.tree.leaves(one_x))
        of_weights, of_xs, of_reset = ([leaf is not None for leaf in of] for of in (trained, wrt_xs, wrt_reset_to))
        of_end = _by_leaf([bar is not None for bar in end_bar], state)
        credited = map(any, zip(parts.reads_after, parts.reads_before, of_end, strict=True))
        of_state = map(any, zip(_by_leaf(wanted.state, state), of_reset, strict=True))
        asked = set(itertools.compress(itertools.count(), [*of_weights, *of_xs]))
        of_drive = [not asked.isdisjoint(of) for of in parts.drive_from]
        ends = Ends(*map(tuple, (credited, of_state, of_weights, of_drive)))
        arguments = parts.transition_with_effects, weights, shapes, drive, parts.costly, ends
        known = earlier and earlier.pullback
        pullback = split_pullback(*arguments, fixed=parts.fixed, transpose_from=transpose_from, earlier=known)
    else:
        pullback = only_forwards(parts, len(shapes))
    bodies = default_bodies(parts.equations)
    sizes = (sum(map(nbytes, of)) * concrete(math.prod(call.batch)) for of in (shapes, drive))
    at_once = bool(pullback.blocks) and not parts.one_by_one and not parts.opaque and is_small(*sizes)
    solvable = Solvable(at_once, at_once and pullback.is_affine)
    recurrence = Recurrence(parts, weights, pullback, shapes, reset_to, call.batch, bodies=bodies, solvable=solvable)
    wrt, inputs = Wrt(trained, wrt_xs, wrt_reset_to), Inputs(xs, varied.reset, varied.gate)
    return FlatCall(recurrence, wrt, wrt_params, state, inputs, pull_weights)


def _by_leaf(wanted: bool | Sequence[bool], leaves: Leaves) -> Sequence[bool]:
    """Of each leaf whether it is wanted; of those that are ours, not."""
    return [wanted] * len(leaves) if isinstance(wanted, bool) else [*wanted, *[False] * (len(leaves) - len(wanted))]


# And back.


def unflatten_state(call: Call, leaves: Leaves) -> PyTree:
    """Leaves of the state in the user's structure."""
    structure = jax.tree.structure(call.state)
    return jax.tree.unflatten(structure, leaves[: structure.num_leaves])


def unflatten_like(tree: PyTree, leaves: Leaves) -> PyTree:
    """Cotangents, the first ones, in the structure of `tree`; None is zero, of float0 where there is no derivative."""
    old, structure = jax.tree.flatten(tree)

    def of(bar: Any, leaf: Any) -> Any:
        if bar is not None:
            return sum_like(bar, leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return full(leaf.shape, leaf.dtype, varying(leaf))
        return np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.unflatten(structure, list(map(of, leaves[: len(old)], old)))


def unflatten_gradients(
    call: Call, argnums: int | Sequence[int], burn_in: int, params_bar: PyTree, start_bar: Leaves, xs_bar: Leaves
) -> PyTree:
    """Cotangents of flat leaves as what `argnums` asks for; those of the burn-in are zero."""

    def of(argument: int) -> PyTree:
        if argument == 0:
            return params_bar
        if argument == 1:
            return unflatten_like(call.state, zeros((), start_bar) if burn_in else start_bar)
        before = [(burn_in, 0)]
        padded = jax.tree.map(lambda bar: jnp.pad(bar, before + [(0, 0)] * (bar.ndim - 1)) if burn_in else bar, xs_bar)
        return unflatten_like(call.xs, padded)

    return of(argnums) if isinstance(argnums, int) else tuple(map(of, argnums))
