"""The rows of the table: which contenders compute the same gradient, of what shapes."""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jax_bptt as jb
from tests.interop import recipes

from . import peers
from .measure import Contender, compiled
from .shapes import Shape


class Row(NamedTuple):
    table: str
    cell: str
    shape: Shape
    contenders: list[Contender]
    """Ours first."""
    flops: int
    """The products of the gradient with respect to the params, each of them once."""


def exact(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Exact gradients, everything at its default."""
    for cell, shape, task in _tasks(shapes, cells):
        step, ours = peers.rows(cell), jb.bptt(task.cell, jb.losses.squared_error)
        contenders = [
            task.compiled("ours", ours),
            task.compiled("jax.grad", peers.jax_grad(step)),
            task.compiled("jax.grad, columns", peers.jax_grad_columns(peers.columns(cell))),
            task.compiled("jax.grad, unroll 4", peers.jax_grad(step, unroll=4)),
            task.compiled("jax.grad, unroll 8", peers.jax_grad(step, unroll=8)),
            task.flax(),
            *task.torch(),
        ]
        yield Row("exact", cell, shape, contenders, task.flops)


def on_a_device(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Exact gradients beside what a user would write for a GPU or TPU, and, by PyTorch, cuDNN."""
    for cell, shape, task in _tasks(shapes, cells):
        step = peers.rows(cell)
        contenders = [
            task.compiled("ours", jb.bptt(task.cell, jb.losses.squared_error)),
            *(task.compiled(f"scan, unroll {n}", peers.jax_grad(step, unroll=n)) for n in (1, 4, 8, 16)),
            task.compiled("products hoisted, unroll 8", peers.hoisted(cell, unroll=8)),
            *task.torch(),
        ]
        yield Row("on a device", cell, shape, contenders, task.flops)


def boundaries(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Exact gradients in O(√T) memory."""
    for cell, shape, task in _tasks(shapes, cells):
        step, ours = peers.rows(cell), jb.bptt(task.cell, jb.losses.squared_error, save="boundaries")
        contenders = [
            task.compiled("ours, boundaries", ours),
            task.compiled("jax.grad", peers.jax_grad(step)),
            task.compiled("jax.checkpoint", peers.jax_checkpoint(step)),
            task.compiled("equinox, checkpointed", peers.equinox_checkpointed(step)),
        ]
        yield Row("boundaries", cell, shape, contenders, task.flops)


def interop(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Cells of Flax and Equinox, unchanged, without a readout."""
    for shape in shapes:
        T, B, I, H, _ = shape
        xs, targets = _data(shape._replace(O=H))
        for name, (step, params) in _cells_of_others(I, H).items():
            kind = name.split()[1]
            if kind not in cells:
                continue
            zeros = jnp.zeros((B, H), jnp.float32)
            args = params, (zeros, zeros) if kind == "lstm" else zeros, xs, targets
            batched = jax.vmap(step, in_axes=(None, 0, 0))
            contenders = [
                compiled("ours", jb.bptt(step, jb.losses.squared_error), args, _loss_and_first),
                compiled("jax.grad", peers.jax_grad(batched), args, _loss_and_first),
            ]
            yield Row("interop", name, shape, contenders, 6 * T * B * peers.GATES[kind] * H * (H + I))


def chunked(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Truncated gradients, windows one after the other, beside the usual recipe."""
    for cell, shape, task in _tasks(shapes, cells):
        k = _horizon(shape)
        contenders = [
            task.compiled("ours", jb.truncated_bptt(task.cell, jb.losses.squared_error, k, k)),
            task.compiled("scan over windows", peers.chunked(peers.rows(cell), k)),
        ]
        yield Row(f"truncated, k1 = k2 = {k}", cell, shape, contenders, task.flops)


def overlapping(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Truncated gradients, windows that overlap, beside the usual recipes."""
    for cell, shape, task in _tasks(shapes, cells):
        step, k2 = peers.rows(cell), _horizon(shape)
        k1 = k2 // 4
        contenders = [
            task.compiled("ours", jb.truncated_bptt(task.cell, jb.losses.squared_error, k1, k2)),
            task.compiled("vmap over windows", peers.overlapping(step, k1, k2, lambda f, ends: jax.vmap(f)(ends))),
            task.compiled("map over windows", peers.overlapping(step, k1, k2, jax.lax.map)),
        ]
        yield Row(f"truncated, k1 = {k1}, k2 = {k2}", cell, shape, contenders, task.flops)


def training(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[Row]:
    """Online training on a stream, an update every 16 steps: one compiled call beside a loop over a compiled update."""
    for name, shape, task in _tasks(shapes, cells):
        params, state, xs, targets = task.args
        k, optimizer = 16, optax.sgd(1e-4)
        begin = jb.training.init(params, optimizer, state)
        gradient = jb.bptt(task.cell, jb.losses.squared_error)
        epoch = jax.jit(jb.training.train_online(task.cell, jb.losses.squared_error, optimizer, k, k).update)
        one = jax.jit(jb.training.train_step(gradient, optimizer))
        chunks = [(xs[i : i + k], targets[i : i + k]) for i in range(0, shape.T, k)]

        def in_one_call(epoch=epoch, begin=begin, xs=xs, targets=targets):
            return jax.block_until_ready(epoch(begin, xs, targets)[0])

        def in_a_loop(one=one, begin=begin, chunks=chunks):
            train_state = begin
            for chunk in chunks:
                train_state, _ = one(train_state, *chunk)
            return jax.block_until_ready(train_state)

        def pick(train_state, name=name):
            return jax.tree.leaves(train_state.carry)[0], train_state.params[peers.RECURRENT[name]]

        contenders = [Contender("ours", in_one_call, pick), Contender("loop in Python", in_a_loop, pick)]
        yield Row(f"training, {len(chunks)} updates", name, shape, contenders, task.flops)


def _horizon(shape: Shape) -> int:
    return min(32, shape.T // 8)


class Task(NamedTuple):
    """A cell with random params and data."""

    name: str
    cell: jb.Cell
    args: tuple
    flops: int

    def pick(self, result: Any) -> tuple[Any, Any]:
        (loss, _), grads = result
        return loss, grads[peers.RECURRENT[self.name]]

    def compiled(self, name: str, function: Callable) -> Contender:
        return compiled(name, function, self.args, self.pick)

    def flax(self) -> Contender:
        function, params, pick = peers.flax_rnn(self.name, self.args[0])
        return compiled(
            "flax nnx.RNN", function, (params, *self.args[1:]), lambda result: (result[0][0], pick(result[1]))
        )

    def torch(self) -> list[Contender]:
        """PyTorch, where it is installed."""
        if not find_spec("torch"):
            return []
        params, _, xs, targets = self.args
        threads = len(os.sched_getaffinity(0))
        run = peers.torch_rnn(self.name, params, xs, targets, threads)
        return [Contender("torch", run, lambda result: result)]


def _tasks(shapes: Sequence[Shape], cells: Sequence[str]) -> Iterator[tuple[str, Shape, Task]]:
    for name in cells:
        for shape in shapes:
            T, B, I, H, O = shape
            cell = getattr(jb.cells, name)(I, H, O, dtype=jnp.float32)
            recurrent, inputs, readout = peers.GATES[name] * H * H, peers.GATES[name] * H * I, H * O
            flops = 2 * T * B * (3 * recurrent + 2 * inputs + 3 * readout)
            yield (
                name,
                shape,
                Task(name, cell, (cell.init(jax.random.key(0)), cell.initial_state(B), *_data(shape)), flops),
            )


def _data(shape: Shape) -> tuple[jax.Array, jax.Array]:
    T, B, I, _, O = shape
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (T, B, I), jnp.float32), jax.random.normal(keys[1], (T, B, O), jnp.float32)


def _cells_of_others(I: int, H: int) -> dict[str, tuple[Callable, Any]]:
    """Steps and params."""
    rngs, key = nnx.Rngs(0), jax.random.key(0)
    return {
        "nnx lstm": recipes.flax_nnx(nnx.LSTMCell(I, H, rngs=rngs)),
        "nnx gru": recipes.flax_nnx(nnx.GRUCell(I, H, rngs=rngs)),
        "equinox lstm": recipes.equinox(eqx.nn.LSTMCell(I, H, key=key)),
        "equinox gru": recipes.equinox(eqx.nn.GRUCell(I, H, key=key)),
    }


def _loss_and_first(result: Any) -> tuple[Any, Any]:
    (loss, _), grads = result
    return loss, max(jax.tree.leaves(grads), key=lambda leaf: leaf.size)
