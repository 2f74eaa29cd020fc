"""Text as data: characters as integers.

text → Corpus(vocabulary, train, held_out) → chunks for training, in parallel streams
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
    """The text of a UTF-8 file, its lines ended as Python's are, whatever system wrote it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not UTF-8, naming the first byte that is not.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise ValueError(f"{path}: found {found}, expected UTF-8 text") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def corpus(text: str, held_out: float = 0.1) -> Corpus:
    """Hold out that share of a text, its end, and number its characters by those of the rest, after `UNKNOWN`."""
    cut = len(text) - round(held_out * len(text))
    vocabulary = (UNKNOWN, *sorted(set(text[:cut]) - {UNKNOWN}))
    number = {character: i for i, character in enumerate(vocabulary)}
    ids = np.asarray([number.get(character, 0) for character in text], np.int32)
    return Corpus(vocabulary, ids[:cut], ids[cut:])


def decode(vocabulary: Sequence[str], ids: Sequence[int]) -> str:
    """Integers as text."""
    return "".join(vocabulary[i] for i in ids)


def chunks(ids: np.ndarray, steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into parallel streams, and these into K chunks that follow each other; what fills none is left out.

    Returns:
        Inputs and targets, the characters one later, both `[K, T, B]`.

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
