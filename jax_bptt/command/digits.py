"""The second task: handwritten digits, read pixel by pixel, with exact and truncated gradients.

An image of 8 × 8 pixels is a sequence of 64 steps; the loss is that of the last step alone. So credit must travel the
whole way to reach what was read first, and a network that is trained with a horizon of k2 steps learns to read only the
last k2 pixels well. The 1,797 images ship with scikit-learn.

Source:
    E. Alpaydin and C. Kaynak, "Cascading classifiers", 1998, for the images.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt import plots
from jax_bptt.batching import Batch, buckets
from jax_bptt.command import terminal
from jax_bptt.command.arguments import CELLS, chosen_optimizer
from jax_bptt.command.gradient_check import Gradient
from jax_bptt.training import TrainState

LOSS = jb.losses.softmax_cross_entropy
STEPS = 64
TEST = 360


class Image(NamedTuple):
    """One image as a sequence."""

    pixels: np.ndarray  # [64, 1], from 0 to 1
    label: np.ndarray  # [64], the same at every step


class Curve(NamedTuple):
    """What came of training with one gradient."""

    accuracy: list[float]  # on the test images, after each epoch
    seconds: float  # of training alone, compilation included


def images() -> tuple[list[Image], list[Image]]:
    """Those to train on, and the 360 to test on, in an order that is always the same."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    made = [
        Image((pixels[i] / 16).astype(np.float32)[:, None], np.full(STEPS, labels[i], np.int32)) for i in order.tolist()
    ]
    return made[TEST:], made[:TEST]


def prepare_digits(arguments: argparse.Namespace) -> Callable[[], None]:
    """What runs once the arguments make sense."""
    training, test = images()
    return lambda: _run_digits(arguments, training, test)


def _run_digits(arguments: argparse.Namespace, training: list[Image], test: list[Image]) -> None:
    out, started = terminal.console(), time.perf_counter()
    model = CELLS[arguments.cell](1, arguments.hidden, 10, output_bias=True)
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    out.print(f"images: {len(training):,} to train on, {len(test)} to test on, {STEPS} steps of one pixel each")
    out.print(f"model:  {arguments.cell}, {arguments.hidden} units, {size:,} parameters\n")
    curves, gradients = {}, _gradients_by_name(model, arguments.k2)
    with terminal.interruptible() as interrupted:
        for name, gradient in gradients.items():
            with terminal.progress(out, arguments.epochs, terminal.IMAGES, name=name) as advance:
                for curve in train_digits(arguments, model, gradient, training, test):
                    curves[name] = curve
                    advance(len(curve.accuracy), 100 * curve.accuracy[-1], len(curve.accuracy) * len(training))
                    if interrupted():
                        break
            if interrupted():
                out.print(f"interrupted after {len(curves[name].accuracy)} epochs: this is what was learnt so far")
                break
    rows = [(name, f"{100 * c.accuracy[-1]:.1f} %", terminal.seconds(c.seconds)) for name, c in curves.items()]
    out.print()
    terminal.print_table(out, "Test images", ("gradient", "told right", "training"), rows)
    plots.accuracies({name: curve.accuracy for name, curve in curves.items()}).savefig(arguments.out, dpi=150)
    out.print(f"\npicture: {arguments.out}\n{time.perf_counter() - started:.0f} s in all")


def _gradients_by_name(model: jb.Cell, horizons: Sequence[int]) -> dict[str, Gradient]:
    gradients = {"exact": jb.bptt(model, LOSS, reduction="mean")}
    for k2 in sorted({min(k2, STEPS) for k2 in horizons}, reverse=True):
        name = f"truncated, k2 = {k2}"
        gradients[name] = jb.truncated_bptt(model, LOSS, STEPS, k2, losses="last", reduction="mean")
    return gradients


def train_digits(
    arguments: argparse.Namespace, model: jb.Cell, gradient: Gradient, training: list[Image], test: list[Image]
) -> Iterator[Curve]:
    """Train a network from the same initial params, in the same order of images, whatever the gradient.

    Yields:
        What came of it so far, after each epoch.
    """
    rng = np.random.default_rng(arguments.seed)
    updates = -(-len(training) // arguments.batch)
    chosen = chosen_optimizer(arguments, arguments.epochs * updates)
    update = jb.training.train_step(gradient, chosen)
    zeros = model.initial_state(arguments.batch)
    last = jnp.arange(STEPS)[:, None] == STEPS - 1

    @jax.jit
    def epoch(state: TrainState, batches: Batch) -> TrainState:
        def one(state, batch):
            state, _ = update(state._replace(carry=zeros), *batch.data, mask=last & batch.mask)
            return state, None

        return jax.lax.scan(one, state, batches)[0]

    (test_batch,) = buckets(test, len(test), lengths=[STEPS])
    right = jax.jit(jb.training.evaluate(model, _is_right))
    state = jb.training.init(model.init(jax.random.key(arguments.seed)), chosen, zeros)
    curve = Curve([], 0.0)
    for _ in range(arguments.epochs):
        batches = buckets(training, arguments.batch, lengths=[STEPS], rng=rng)
        started = time.perf_counter()
        state = jax.block_until_ready(epoch(state, jax.tree.map(lambda *leaves: np.stack(leaves), *batches)))
        seconds = time.perf_counter() - started
        found, _ = right(state.params, model.initial_state(len(test)), *test_batch.data, last[:, 0])
        curve = Curve([*curve.accuracy, float(found)], curve.seconds + seconds)
        yield curve


def _is_right(output: jax.Array, label: jax.Array) -> jax.Array:
    """1 where the most likely label is the right one."""
    return (output.argmax() == label).astype(jnp.float32)
