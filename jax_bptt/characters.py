"""The command's experiment: a character-level language model, its training, and what to measure of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt import text
from jax_bptt.training import TrainState, Update

LOSS = jb.losses.softmax_cross_entropy

Gradient = Callable[..., tuple[tuple[jax.Array, Any], Any]]
"""A gradient function: `gradient(params, state, xs, targets) -> ((loss, state), grads)`."""


class Task(NamedTuple):
    """What is trained on what."""

    corpus: text.Corpus
    inputs: np.ndarray  # [K, T, B]
    targets: np.ndarray  # [K, T, B]
    model: jb.Cell


class Training(NamedTuple):
    """How far training came."""

    state: TrainState
    bits: np.ndarray
    """Bits per character of each chunk that was trained on, `[number of chunks]`."""


def train(
    task: Task,
    update: Update,
    begin: TrainState,
    training: Training,
    steps: int,
    after: Callable[[Training, float], None],
    interrupted: Callable[[], bool],
) -> Training:
    """Train until `steps` chunks were read, the state carried from chunk to chunk and begun anew with the text.

    Args:
        task: what is trained on what.
        update: of `jb.training`, with the mean loss of a chunk or its windows.
        begin: its carry is that at the beginning of the text.
        training: how far training came before.
        steps: how many chunks in all.
        after: is told after each chunk how far training came, and the norm of the gradient.
        interrupted: ends the training where it tells that it was; at least one chunk is read.
    """
    jitted, chunks = jax.jit(update), len(task.inputs)
    while len(training.bits) < steps:
        state, chunk = training.state, len(training.bits) % chunks
        if chunk == 0:
            state = state._replace(carry=begin.carry)
        state, metrics = jitted(state, task.inputs[chunk], task.targets[chunk])
        bits = float(np.mean(metrics.loss)) / np.log(2)
        training = Training(state, np.append(training.bits, bits))
        after(training, float(np.mean(metrics.gradient_norm)))
        if interrupted():
            break
    return training


def held_out_bits(model: jb.Cell, params: Any, ids: np.ndarray) -> float:
    """Bits per character of one long text, read from its beginning; from the third character on, as for a trigram."""
    evaluate = jax.jit(jb.training.evaluate(model, LOSS))
    mask = np.arange(len(ids) - 1) > 0
    loss, _ = evaluate(params, model.initial_state(1), ids[:-1, None], ids[1:, None], mask)
    return float(loss / np.log(2))


def credit(task: Task, params: Any) -> np.ndarray:
    """‖∂L/∂h_t‖ at every step of the first chunk, over all streams and leaves of the state."""
    deltas = jax.jit(jb.state_gradients(task.model, LOSS, reduction="mean"))
    state = task.model.initial_state(task.inputs.shape[2])
    leaves = jax.tree.leaves(deltas(params, state, task.inputs[0], task.targets[0]))
    return np.sqrt(sum(np.square(leaf).sum(axis=tuple(range(1, leaf.ndim))) for leaf in leaves))


class Distance(NamedTuple):
    """How far one gradient is from another, over all params."""

    cosine: float
    norm: float
    """Of the one, relative to the other's."""
    difference: float
    """The norm of their difference, relative to the other's."""


def distance(task: Task, params: Any, gradient: Gradient, other: Gradient) -> Distance:
    """How far `gradient` is from `other` on the first chunk."""
    state = task.model.initial_state(task.inputs.shape[2])
    arguments = params, state, task.inputs[0], task.targets[0]
    a, b = (jax.flatten_util.ravel_pytree(jax.jit(g)(*arguments)[1])[0] for g in (gradient, other))
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    return Distance(float(a @ b / (norm_a * norm_b)), float(norm_a / norm_b), float(np.linalg.norm(a - b) / norm_b))


def language_model(cell: jb.Cell, vocabulary: int, embedding: int) -> jb.Cell:
    """A cell that reads characters: x_t = E[token_t].

    Args:
        cell: reads `[embedding]`, and its outputs are the logits of the next character, `[vocabulary]`.
        vocabulary, embedding: sizes.

    Returns:
        A `Cell` with params `{"E": [vocabulary, embedding], "cell": …}`.
    """

    def init(key: jax.Array) -> dict[str, Any]:
        key_E, key_cell = jax.random.split(key)
        return {"E": jax.random.normal(key_E, (vocabulary, embedding)), "cell": cell.init(key_cell)}

    def step(params: Any, state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        return cell.step(params["cell"], state, params["E"][token])

    return jb.Cell(init, cell.initial_state, step)


def sample(
    model: jb.Cell, params: Any, key: jax.Array, prompt: jax.Array, length: int, temperature: float
) -> jax.Array:
    """Text that the model makes up, one character after the other.

    Args:
        prompt: `[P]` characters to read first.
        length: how many to make up after them.
        temperature: the logits are divided by it.

    Returns:
        `[length]` characters; `UNKNOWN` is never drawn.
    """

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
