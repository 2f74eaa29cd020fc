"""The command's experiment: a character-level language model, its training, and what to measure of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import jax_bptt as jb
from jax_bptt import text

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
    """What came of training."""

    params: Any
    bits: list[float]
    """Bits per character of the chunk of each update."""


def train(
    task: Task,
    gradient: Gradient,
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    advance: Callable[[int, float, int], None],
    interrupted: Callable[[], bool],
) -> Training:
    """Make `steps` updates, one per chunk, the state carried from chunk to chunk and begun anew with the text.

    Args:
        task: what is trained on what.
        gradient: of the mean loss of a chunk.
        params: where it begins.
        optimizer: of optax.
        steps: how many updates.
        advance: is told after each update how many there were, recent bits per character, and characters read.
        interrupted: ends the training where it tells that it was; at least one update is made.
    """

    @jax.jit
    def update(params, opt_state, state, inputs, targets):
        (loss, state), grads = gradient(params, state, inputs, targets)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, loss / jnp.log(2)

    chunks, chunk, batch = task.inputs.shape
    start = state = task.model.initial_state(batch)
    opt_state = optimizer.init(params)
    bits: list[float] = []
    recent = 0.0
    for i in range(steps):
        if i % chunks == 0:
            state = start
        params, opt_state, state, loss = update(
            params, opt_state, state, task.inputs[i % chunks], task.targets[i % chunks]
        )
        bits.append(float(loss))
        recent += (bits[-1] - recent) / min(len(bits), 20)
        advance(i + 1, recent, (i + 1) * chunk * batch)
        if interrupted():
            break
    return Training(params, bits)


def held_out_bits(model: jb.Cell, params: Any, ids: np.ndarray) -> float:
    """Bits per character of one long text, read from its beginning; from the third character on, as for a trigram."""

    @jax.jit
    def loss(params, inputs, targets):
        def read(state, tokens):
            token, next_token = tokens
            state, logits = model.step(params, state, token)
            return state, LOSS(logits, next_token)

        start = jax.tree.map(lambda leaf: leaf[0], model.initial_state(1))
        return jax.lax.scan(read, start, (inputs, targets))[1][1:].mean()

    return float(loss(params, ids[:-1], ids[1:]) / np.log(2))


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
