"""A character-level language model, its training, and what to measure of it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.command.text import Corpus
from jax_bptt.model import PyTree
from jax_bptt.training import Adaptive, TrainState, Update

LOSS = jb.losses.softmax_cross_entropy

MEASUREMENTS = 10
"""How often the model is measured on held-out text while it is trained."""


class TextTask(NamedTuple):
    """What is trained on what."""

    corpus: Corpus
    inputs: np.ndarray  # [K, T, B]
    targets: np.ndarray  # [K, T, B]
    model: jb.Cell


class Training(NamedTuple):
    """How far training came."""

    state: TrainState
    bits: np.ndarray  # bits per character of each chunk that was trained on, [number of chunks]
    horizons: np.ndarray  # with which it was, in steps, where that adapts, else 0, [number of chunks]
    held_out: np.ndarray  # bits per character of held-out text after it, NaN where not measured, [number of chunks]


def train_language_model(
    task: TextTask,
    update: Update,
    begin: TrainState,
    training: Training,
    steps: int,
    measure: Callable[[PyTree], float],
) -> Iterator[tuple[Training, float]]:
    """Train until `steps` chunks were read, the state carried from chunk to chunk and begun anew with the text.

    Args:
        measure: what is to be told of the params `MEASUREMENTS` times, the last one at the end.

    Yields:
        After each chunk how far training came, and the norm of the gradient.
    """
    jitted, chunks = jax.jit(update), len(task.inputs)
    measured = {max(1, round(steps * (i + 1) / MEASUREMENTS)) for i in range(MEASUREMENTS)}
    while len(training.bits) < steps:
        state, chunk = training.state, len(training.bits) % chunks
        if chunk == 0:
            state = _from_the_outset(state, begin)
        state, metrics = jitted(state, task.inputs[chunk], task.targets[chunk])
        bits = float(np.mean(metrics.loss)) / np.log(2)
        horizon = int(state.carry.horizon) if isinstance(state.carry, Adaptive) else 0
        held_out = measure(state.params) if len(training.bits) + 1 in measured else np.nan
        told = (bits, horizon, held_out)
        training = Training(state, *(np.append(*pair) for pair in zip(training[1:], told, strict=True)))
        yield training, float(np.mean(metrics.gradient_norm))


def _from_the_outset(state: TrainState, begin: TrainState) -> TrainState:
    """With the recurrent state of the beginning."""
    carry = state.carry
    return state._replace(carry=carry._replace(state=begin.carry.state) if isinstance(carry, Adaptive) else begin.carry)


def held_out_bits(model: jb.Cell, ids: np.ndarray) -> Callable[[PyTree], float]:
    """Bits per character of one long text, read from its beginning; from the third character on, as for a trigram.

    Returns:
        What tells it of params that are on one device, compiled once.
    """
    evaluate = jax.jit(jb.training.evaluate(model, LOSS))
    mask = np.arange(len(ids) - 1) > 0

    def measure(params: PyTree) -> float:
        loss, _ = evaluate(params, model.initial_state(1), ids[:-1, None], ids[1:, None], mask)
        return float(loss / np.log(2))

    return measure


def credit_over_time(task: TextTask, params: Any) -> np.ndarray:
    """‖∂L/∂h_t‖ at every step of the first chunk, over all streams and leaves of the state."""
    deltas = jax.jit(jb.state_gradients(task.model, LOSS, reduction="mean"))
    leaves = jax.tree.leaves(deltas(*first_chunk(task, params)))
    return np.sqrt(sum(np.square(leaf).sum(axis=tuple(range(1, leaf.ndim))) for leaf in leaves))


def first_chunk(task: TextTask, params: Any, steps: int | None = None) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """What a gradient function takes to read so many steps of the first chunk, or all."""
    state = task.model.initial_state(task.inputs.shape[2])
    return params, state, task.inputs[0, :steps], task.targets[0, :steps]


def with_embedding(cell: jb.Cell, vocabulary: int, embedding: int) -> jb.Cell:
    """A cell that reads characters, x_t = E[token_t], with params `{"E": [vocabulary, embedding], "cell": …}`."""

    def init(key: jax.Array) -> dict[str, Any]:
        key_E, key_cell = jax.random.split(key)
        return {"E": jax.random.normal(key_E, (vocabulary, embedding)), "cell": cell.init(key_cell)}

    def step(params: Any, state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        return cell.step(params["cell"], state, params["E"][token])

    return jb.Cell(init, cell.initial_state, step)


def sample(
    model: jb.Cell, params: Any, key: jax.Array, prompt: jax.Array, length: int, temperature: float
) -> jax.Array:
    """So many characters that the model makes up after a prompt of `[P]`; `UNKNOWN` is never drawn."""

    def read_on(state, token):
        return model.step(params, state, token)

    def make_up(carry, key):
        state, logits = carry
        logits = logits.at[0].set(-jnp.inf)
        token = jax.random.categorical(key, logits / temperature)
        return model.step(params, state, token), token

    state = jax.tree.map(lambda leaf: leaf[0], model.initial_state(1))
    state, logits = jax.lax.scan(read_on, state, prompt)
    _, tokens = jax.lax.scan(make_up, (state, logits[-1]), jax.random.split(key, length))
    return tokens
