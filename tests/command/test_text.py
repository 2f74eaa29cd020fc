import numpy as np
import pytest

from jax_bptt.command import text

TEXT = "the cat sat on the mat; the dog sat on the log. " * 6 + "a bee sees the sea, quite free?"


def test_python_reference_is_long_and_always_the_same():
    whole = text.python_reference()
    assert len(whole) > 300_000
    assert whole == text.python_reference()


def test_read_takes_utf8_of_any_system(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "text").write_text("größer ∂", encoding=encoding)
        assert text.read(tmp_path / "text") == "größer ∂"
    (tmp_path / "text").write_bytes(b"of Windows\r\nof old\rof Unix\n")
    assert text.read(tmp_path / "text") == "of Windows\nof old\nof Unix\n"
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
