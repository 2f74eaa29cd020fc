"""Batching: sequences as batches of few shapes, with a mask for what is padding.

    streams(data, batch, steps)     one long sequence, as chunks of B streams side by side
    buckets(sequences, batch)       sequences of different lengths, padded to a few

Both take NumPy arrays, or what becomes such, and return a list of `Batch`es, time first, then batch, as the gradient
functions have them: to loop over as it is, to shuffle, or to be the source of a loader. Padding repeats a step that is
there, so that no model meets a number that is not of the data. A state that grows without bound where a step is
repeated is put back by `reset=~batch.mask`, and so makes no NaN in the masked steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_bptt.checks.options import check_count, describe


class Batch(NamedTuple):
    """T steps of B sequences."""

    data: Any  # as what was cut: a pytree of [T, B, …]
    mask: np.ndarray  # what is data and not padding: booleans of [T, B]
    ids: np.ndarray  # which of the sequences each column has, [B] integers; −1 where it has none and is masked


def streams(data: Any, batch: int, steps: int) -> list[Batch]:
    """One long sequence as B streams, read side by side in chunks.

    The sequence is cut into B consecutive pieces of equal length, to within one step; each chunk has the next `steps`
    steps of each. So the state returned for one chunk is the one to begin the next with. Nothing is lost: what the
    pieces lack in the last chunk is masked.

    Args:
        data: a pytree of arrays of `[N, …]`, inputs and targets as a rule.
        batch: B, no more than N.
        steps: T, those of a chunk.

    Returns:
        ⌈N / B / T⌉ batches of `[T, B]`.

    Raises:
        TypeError: if a size is no integer, or data no arrays.
        ValueError: if a size is less than 1 or B more than N, or if arrays differ in N.
    """
    batch, steps = check_count("batch", batch), check_count("steps", steps)
    data = jax.tree.map(np.asarray, data)
    N = _length("data", data)
    if batch > N:
        raise ValueError(f"batch: found {batch}, expected no more than N = {N}, the length of data")
    starts = np.arange(batch + 1) * (N // batch) + np.minimum(np.arange(batch + 1), N % batch)
    chunks = -(-N // (batch * steps))
    places = np.arange(chunks * steps)[:, None] + starts[:-1]
    mask = places < starts[1:]
    places = np.minimum(places, starts[1:] - 1)
    return [
        Batch(jax.tree.map(lambda a, here=here: a[places[here]], data), mask[here], np.arange(batch))
        for here in (slice(k * steps, (k + 1) * steps) for k in range(chunks))
    ]


def buckets(
    sequences: Sequence[Any], batch: int, *, lengths: int | Sequence[int] = 8, rng: np.random.Generator | None = None
) -> list[Batch]:
    """Sequences of different lengths, those of like length together, each padded to one of a few lengths.

    A jitted function of such batches compiles at most once for each length.

    Args:
        sequences: pytrees of arrays of `[T_i, …]`, alike but for T_i ≥ 1.
        batch: B.
        lengths: those to pad to, in any order; or how many at most, which are then chosen so that each has an equal
            share of the sequences.
        rng: shuffles the sequences within a length, and the batches; in order where None.

    Returns:
        Batches of `[T, B]`, T one of the lengths; each sequence is in one of them. Where the sequences of a length do
        not fill their last batch, copies of the longest of them do, which are masked (a mean over the steps of each
        sequence has nothing to divide by there: weigh by `mask / np.maximum(mask.sum(0), 1)`).

    Raises:
        TypeError: if a size is no integer, or sequences differ in structure.
        ValueError: if a size is less than 1, there are no sequences, or one is empty, longer than all lengths, or of
            other shapes or dtypes than the first.
    """
    batch = check_count("batch", batch)
    sequences = [jax.tree.map(np.asarray, sequence) for sequence in sequences]
    if not sequences:
        raise ValueError("sequences: found none, expected at least one")
    for i, sequence in enumerate(sequences):
        if jax.tree.structure(sequence) != jax.tree.structure(sequences[0]):
            raise TypeError(
                f"sequences[{i}]: found structure {jax.tree.structure(sequence)}, expected that of the first, "
                f"{jax.tree.structure(sequences[0])}"
            )
    steps = np.array([_length(f"sequences[{i}]", sequence) for i, sequence in enumerate(sequences)])
    for i, sequence in enumerate(sequences):
        shapes = [[(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(of)] for of in (sequence, sequences[0])]
        if shapes[0] != shapes[1]:
            found, expected = ([f"{dtype}{['T', *shape]}" for shape, dtype in of] for of in shapes)
            raise ValueError(f"sequences[{i}]: found {found}, expected {expected} as of the first")
    if isinstance(lengths, Sequence | np.ndarray):
        ends = np.unique([check_count("lengths", length) for length in lengths])
    else:
        number = check_count("lengths", lengths)
        ends = np.unique(np.quantile(steps, np.arange(1, number + 1) / number, method="higher"))
    if not len(ends) or steps.max() > ends[-1]:
        raise ValueError(
            f"lengths: found {ends.tolist()}, expected one of at least {steps.max()}, the length of "
            f"sequences[{steps.argmax()}]"
        )
    order = np.arange(len(sequences)) if rng is None else rng.permutation(len(sequences))
    of_bucket = np.searchsorted(ends, steps[order])
    batches = []
    for bucket, T in enumerate(ends.tolist()):
        members = order[of_bucket == bucket]
        for index in (members[k : k + batch] for k in range(0, len(members), batch)):
            batches.append(_padded([sequences[i] for i in index], index, T, batch))
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def _padded(sequences: list[Any], index: np.ndarray, T: int, batch: int) -> Batch:
    """One batch of `[T, batch]`."""
    absent = batch - len(sequences)
    steps = np.array([len(jax.tree.leaves(sequence)[0]) for sequence in sequences] + [0] * absent)

    def stack(*arrays):
        padded = [a[np.minimum(np.arange(T), len(a) - 1)] for a in arrays]
        return np.stack(padded + [padded[steps.argmax()]] * absent, axis=1)

    return Batch(
        jax.tree.map(stack, *sequences), np.arange(T)[:, None] < steps, np.concatenate([index, np.full(absent, -1)])
    )


def _length(name: str, tree: Any) -> int:
    """N of arrays of `[N, …]`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: found no arrays in it, expected arrays of [N, …]")
    for path, leaf in leaves:
        where = name + jax.tree_util.keystr(path)
        if leaf.dtype == object:
            raise TypeError(f"{where}: found {describe(leaf)}, expected an array of numbers")
        if not leaf.ndim or not len(leaf):
            raise ValueError(f"{where}: found shape {leaf.shape}, expected [N, …] with N of at least 1")
        if len(leaf) != len(leaves[0][1]):
            raise ValueError(f"{where}: found length {len(leaf)}, expected {len(leaves[0][1])} as of the first array")
    return len(leaves[0][1])
