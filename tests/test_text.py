import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import characters, text

TEXT = "the cat sat on the mat; the dog sat on the log. " * 6 + "a bee sees the sea, quite free?"


def test_python_reference_is_long_and_always_the_same():
    whole = text.python_reference()
    assert len(whole) > 300_000
    assert whole == text.python_reference()


def test_read_takes_utf8_with_and_without_a_byte_order_mark(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "text").write_text("größer ∂", encoding=encoding)
        assert text.read(tmp_path / "text") == "größer ∂"
    (tmp_path / "text").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="found byte 0xff at offset 3, expected UTF-8 text"):
        text.read(tmp_path / "text")


def test_corpus_can_be_read_back_and_knows_the_training_split_alone():
    corpus = text.corpus(TEXT)
    assert text.decode(corpus.vocabulary, corpus.train.tolist()) == TEXT[: len(corpus.train)]
    assert len(corpus.held_out) == round(len(TEXT) / 10)
    assert set(corpus.vocabulary) == {text.UNKNOWN, *TEXT[: len(corpus.train)]}
    unseen = TEXT[-1]
    assert unseen not in corpus.vocabulary
    assert corpus.held_out[-1] == 0
    assert text.decode(corpus.vocabulary, [0]) == text.UNKNOWN


@pytest.mark.parametrize(("length", "steps", "batch"), [(25, 4, 3), (26, 4, 3), (24, 3, 2), (7, 3, 2), (100, 7, 1)])
def test_chunks_follow_each_other_in_every_stream(length, steps, batch):
    ids = np.arange(length)
    inputs, targets = text.chunks(ids, steps, batch)
    assert inputs.shape == targets.shape == ((length - 1) // (steps * batch), steps, batch)
    np.testing.assert_array_equal(targets, inputs + 1)
    for stream in range(batch):
        one = inputs[:, :, stream].reshape(-1)
        np.testing.assert_array_equal(one, np.arange(one[0], one[0] + len(one)))
    assert len(np.unique(inputs)) == inputs.size


def test_chunks_of_too_short_a_text():
    with pytest.raises(ValueError, match="text: found 12 characters to train on, expected at least 13 for one chunk"):
        text.chunks(np.arange(12), 4, 3)


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


@pytest.mark.parametrize(("bits", "order"), [(text.unigram_bits, 1), (text.bigram_bits, 2), (text.trigram_bits, 3)])
def test_counted_models_equal_counting_with_dictionaries(bits, order):
    for whole in (TEXT, text.python_reference()[:20_000]):
        corpus = text.corpus(whole)
        np.testing.assert_allclose(bits(corpus), counted_bits(corpus, order), rtol=1e-12)


def test_language_model_reads_embeddings():
    cell = jb.cells.gru(4, 5, 7)
    model = characters.language_model(cell, 7, 4)
    params = model.init(jax.random.key(0))
    state = jnp.ones(5)
    got = model.step(params, state, jnp.asarray(3))
    want = cell.step(params["cell"], state, params["E"][3])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert model.initial_state(2).shape == (2, 5)


def test_sample_follows_the_model():
    """A model that is sure that c + 1 comes after c, and, elsewhere, of the unknown character."""
    size = 5

    def step(params, state, token):
        return state, 50.0 * jax.nn.one_hot((token + 1) % size, size)

    model = jb.Cell(lambda key: None, lambda batch: jnp.zeros((batch, 1)), step)
    drawn = characters.sample(model, None, jax.random.key(0), jnp.asarray([1, 2]), 9, 1.0)
    assert drawn.shape == (9,)
    np.testing.assert_array_equal(drawn[:2], [3, 4])
    assert (drawn != 0).all()  # where the model would draw it, something else is drawn
    again = characters.sample(model, None, jax.random.key(0), jnp.asarray([1, 2]), 9, 1.0)
    np.testing.assert_array_equal(drawn, again)
