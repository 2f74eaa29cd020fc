"""Text as data: characters as integers, and counted models to compare a language model with.

    text → Corpus(vocabulary, train, held_out) → chunks for training, bits per character on what was held out

The counted models are what a recurrent one has to beat: unigram and bigram, and a trigram that is interpolated with
both and the uniform distribution.
"""

import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Stands for every character that the training split does not have.
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Corpus(NamedTuple):
    """A text as integers: 0 for unknown characters, else the place in `vocabulary`."""

    vocabulary: tuple[str, ...]
    train: np.ndarray  # [N]
    held_out: np.ndarray  # [M]


def python_reference() -> str:
    """The language reference that ships with every CPython, about half a million characters."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def read(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not UTF-8, naming the first byte that is not.
    """
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: found byte 0x{data[error.start]:02x} at offset {error.start}, expected UTF-8 text"
        ) from error


def corpus(text: str, held_out: float = 0.1) -> Corpus:
    """Split a text and number its characters.

    Args:
        text: at least a few characters.
        held_out: the share of it, at its end, that is held out.

    Returns:
        The vocabulary is that of the training split alone, after `UNKNOWN`.
    """
    cut = len(text) - round(held_out * len(text))
    vocabulary = (UNKNOWN, *sorted(set(text[:cut]) - {UNKNOWN}))
    number = {character: i for i, character in enumerate(vocabulary)}
    ids = np.asarray([number.get(character, 0) for character in text], np.int32)
    return Corpus(vocabulary, ids[:cut], ids[cut:])


def decode(vocabulary: Sequence[str], ids: Sequence[int]) -> str:
    """Integers as text."""
    return "".join(vocabulary[i] for i in ids)


def chunks(ids: np.ndarray, steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into parallel streams, and these into chunks that follow each other.

    Args:
        ids: `[N]`, of which the last characters that fill no chunk are left out.
        steps, batch: T characters in a chunk of each of B streams.

    Returns:
        Inputs and targets, the characters one later, both `[K, T, B]` for K chunks.

    Raises:
        ValueError: if the text does not fill one chunk.
    """
    count = (len(ids) - 1) // (steps * batch)
    if count < 1:
        raise ValueError(
            f"text: found {len(ids)} characters to train on, expected at least {steps * batch + 1} for one chunk of "
            f"{steps} steps in {batch} streams"
        )
    length = count * steps

    def streams(start):
        return ids[start : start + batch * length].reshape(batch, count, steps).transpose(1, 2, 0)

    return streams(0), streams(1)


# Counted models.


def unigram_bits(corpus: Corpus) -> float:
    """Held-out bits per character of add-one counts."""
    return _bits(_unigram(corpus.train, len(corpus.vocabulary))[corpus.held_out[2:]])


def bigram_bits(corpus: Corpus) -> float:
    """Held-out bits per character of a bigram model, interpolated like the trigram."""
    return _interpolated_bits(corpus, order=2)


def trigram_bits(corpus: Corpus) -> float:
    """Held-out bits per character of an interpolated trigram model.

        P(c | ab) = (n_abc + τ_ab P(c | b)) / (n_ab + τ_ab),    τ_ab the number of kinds of characters seen after ab

    and P(c | b) likewise, down to add-one counts of single characters.

    Source:
        I. H. Witten and T. C. Bell, "The zero-frequency problem: estimating the probabilities of novel events in
        adaptive text compression", 1991, method C, interpolated.
    """
    return _interpolated_bits(corpus, order=3)


def _interpolated_bits(corpus: Corpus, order: int) -> float:
    size = len(corpus.vocabulary)
    next_one = corpus.held_out[2:]
    p = _unigram(corpus.train, size)[next_one]
    for length in range(1, order):
        seen = _contexts(corpus.train, length, size)
        grams, gram_counts = np.unique(seen * size + corpus.train[length:], return_counts=True)
        contexts, context_counts = np.unique(seen, return_counts=True)
        _, kinds = np.unique(grams // size, return_counts=True)  # sorted as `contexts` is
        context = _contexts(corpus.held_out, length, size)[2 - length :]
        n_gram = _look_up(grams, gram_counts, context * size + next_one)
        n_context, tau = _look_up(contexts, context_counts, context), _look_up(contexts, kinds, context)
        p = np.where(n_context > 0, (n_gram + tau * p) / np.maximum(n_context + tau, 1), p)
    return _bits(p)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none; `keys` are sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _unigram(ids: np.ndarray, size: int) -> np.ndarray:
    counts = np.bincount(ids, minlength=size) + 1
    return counts / counts.sum()


def _contexts(ids: np.ndarray, length: int, size: int) -> np.ndarray:
    """The `length` characters before each one, from the first that has so many, as one number."""
    number = np.zeros(len(ids) - length, np.int64)
    for i in range(length):
        number = number * size + ids[i : len(ids) - length + i]
    return number


def _bits(probabilities: np.ndarray) -> float:
    return float(-np.log2(probabilities).mean())
