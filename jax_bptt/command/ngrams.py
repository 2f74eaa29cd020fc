"""Counted models, which a recurrent one has to beat: held-out bits per character of n-grams."""

import numpy as np

from jax_bptt.command.text import Corpus


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
