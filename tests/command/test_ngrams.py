import collections
import math

import numpy as np
import pytest

from command.test_text import TEXT
from jax_bptt.command import ngrams, text


def counted_bits(corpus: text.Corpus, order: int) -> float:
    """Witten and Bell's interpolation with dictionaries, one character at a time."""
    train, held_out = corpus.train.tolist(), corpus.held_out.tolist()
    size = len(corpus.vocabulary)
    followers = collections.defaultdict(collections.Counter)
    for length in range(order):
        for i in range(length, len(train)):
            followers[tuple(train[i - length : i])][train[i]] += 1

    def probability(context, c):
        if not context:
            return (followers[()][c] + 1) / (len(train) + size)
        shorter = probability(context[1:], c)
        counts = followers.get(context)
        if counts is None:
            return shorter
        return (counts[c] + len(counts) * shorter) / (counts.total() + len(counts))

    bits = [-math.log2(probability(tuple(held_out[i - order + 1 : i]), held_out[i])) for i in range(2, len(held_out))]
    return sum(bits) / len(bits)


@pytest.mark.parametrize(
    ("bits", "order"), [(ngrams.unigram_bits, 1), (ngrams.bigram_bits, 2), (ngrams.trigram_bits, 3)]
)
def test_counted_models_equal_counting_with_dictionaries(bits, order):
    for whole in (TEXT, text.python_reference()[:20_000]):
        corpus = text.corpus(whole)
        np.testing.assert_allclose(bits(corpus), counted_bits(corpus, order), rtol=1e-12)
