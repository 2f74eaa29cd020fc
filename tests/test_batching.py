import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROBLEMS, difference

import jax_bptt as jb
from jax_bptt.batching import Batch, buckets, streams


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_streams_read_one_after_the_other_are_the_sequence(N, batch, steps):
    batch = min(batch, N)
    data = {"x": np.arange(N), "more": (np.arange(N)[:, None] * [1.0, 2.0],)}
    batches = streams(data, batch, steps)
    assert all(b.mask.shape == (steps, batch) for b in batches)
    assert len(batches) == -(-N // (batch * steps))
    whole = [[] for _ in range(batch)]
    for chunk in batches:
        for b in range(batch):
            whole[b].extend(chunk.data["x"][chunk.mask[:, b], b])
        np.testing.assert_array_equal(chunk.data["more"][0][..., 1], 2 * chunk.data["x"])
    assert max(map(len, whole)) - min(map(len, whole)) <= 1
    np.testing.assert_array_equal(np.concatenate(whole), np.arange(N))
    for chunk in batches[:-1]:
        assert chunk.mask[: steps - 1].all()


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(0, 5)),
)
def test_buckets_hold_every_sequence_once(lengths, batch, number, seed):
    sequences = [{"x": np.arange(n) + 100 * i} for i, n in enumerate(lengths)]
    rng = None if seed is None else np.random.default_rng(seed)
    batches = buckets(sequences, batch, lengths=number, rng=rng)
    shapes = {b.mask.shape for b in batches}
    assert len(shapes) <= number
    assert {B for _, B in shapes} == {batch}
    found = {}
    for b in batches:
        assert b.data["x"].shape == b.mask.shape
        for column, i in enumerate(b.ids):
            if i < 0:
                assert not b.mask[:, column].any()
            else:
                found[i] = b.data["x"][b.mask[:, column], column]
                assert b.mask[: len(found[i]), column].all()
    assert sum((b.ids >= 0).sum() for b in batches) == len(found) == len(sequences)
    for i, sequence in enumerate(sequences):
        np.testing.assert_array_equal(found[i], sequence["x"])


def test_padding_repeats_what_is_there():
    data = [np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0]), np.array([6.0])]
    first, second = buckets(data, 2, lengths=[4])
    np.testing.assert_array_equal(first.data.T, [[1, 2, 2, 2], [3, 4, 5, 5]])
    np.testing.assert_array_equal(second.data.T, [[6, 6, 6, 6], [6, 6, 6, 6]])
    assert second.ids.tolist() == [2, -1]
    (chunk,) = streams(np.arange(3.0), 2, 3)
    np.testing.assert_array_equal(chunk.data.T, [[0, 1, 1], [2, 2, 2]])


def test_filler_is_of_the_longest_and_a_reset_keeps_padding_from_overflowing():
    """A state that squares itself overflows where the last step of a short sequence is repeated."""
    sequences = [(np.full((2, 1), 3.0), np.ones(2)), (np.full((40, 1), 0.1), np.ones(40))]
    (batch,) = buckets(sequences, 5, lengths=1)
    for leaf in jax.tree.leaves(batch.data):
        np.testing.assert_array_equal(leaf[:, 2:], np.stack([leaf[:, 1]] * 3, axis=1))

    def step(a, h, x):
        return (h := a * h**2 + x[0]), h

    gradient = jb.bptt(step, lambda output, target: (output - target) ** 2, reduction="mean")
    got = gradient(1.0, jnp.zeros(5), *batch.data, mask=batch.mask, reset=~batch.mask)
    alone = [
        jb.bptt(step, lambda output, target: (output - target) ** 2)(1.0, jnp.zeros(1), x[:, None], y[:, None])
        for x, y in sequences
    ]
    (loss, _), grads = got
    losses, gradients = [loss for (loss, _), _ in alone], [grads for _, grads in alone]
    assert difference((loss, grads), (sum(losses) / 42, sum(gradients) / 42)) < 1e-12


def test_a_generator_shuffles_and_repeats():
    data = [np.full(n % 7 + 1, n) for n in range(50)]
    a, b, c = (buckets(data, 4, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert [x.ids.tolist() for x in a] == [x.ids.tolist() for x in b] != [x.ids.tolist() for x in c]
    assert [x.ids.tolist() for x in a] != [x.ids.tolist() for x in buckets(data, 4)]


def test_bucketed_gradients_are_those_of_the_sequences_and_compile_once_a_length():
    problem, rng = PROBLEMS["elman"], np.random.default_rng(0)
    sequences = [{"x": rng.normal(size=(n, 3)), "y": rng.normal(size=(n, 2))} for n in rng.integers(1, 40, size=2000)]
    gradient = jb.bptt(problem.model, problem.loss)
    compiled = []

    @jax.jit
    def add(total, x, y, mask):
        compiled.append(x.shape)
        (loss, _), grads = gradient(problem.params, jnp.zeros((x.shape[1], 4)), x, y, mask=mask)
        return jax.tree.map(jnp.add, total, (loss, grads))

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, problem.params)
    total = zeros
    for batch in buckets(sequences, 32, lengths=6, rng=rng):
        total = add(total, batch.data["x"], batch.data["y"], batch.mask)
    assert len(compiled) <= 6

    # One by one: each alone in a batch, all in one compiled loop over sequences as long as the longest.
    alone = buckets(sequences, 1, lengths=[40])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    reference = jb.reference.bptt(problem.model, problem.loss)

    def one(total, batch):
        (loss, _), grads = reference(problem.params, jnp.zeros((1, 4)), batch.data["x"], batch.data["y"], batch.mask)
        return jax.tree.map(jnp.add, total, (loss, grads)), None

    want, _ = jax.jit(lambda batches: jax.lax.scan(one, zeros, batches))(stacked)
    assert difference(total, want) <= 1e-12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: streams(np.arange(3), 4, 1), ValueError, "batch: found 4, expected no more than N = 3"),
        (lambda: streams(np.arange(3), 0, 1), ValueError, "batch: found 0, expected at least 1"),
        (lambda: streams(np.arange(3), 1, 1.5), TypeError, "steps: found 1.5 of type float, expected a positive int"),
        (lambda: streams((np.arange(3), np.arange(4)), 1, 1), ValueError, r"data\[1\]: found length 4, expected 3"),
        (lambda: streams((), 1, 1), ValueError, "data: found no arrays"),
        (lambda: streams(3.0, 1, 1), ValueError, r"data: found shape \(\), expected \[N, …\]"),
        (lambda: streams(np.array([None]), 1, 1), TypeError, "data: found an array of shape .* and dtype object"),
        (lambda: buckets([], 1), ValueError, "sequences: found none"),
        (lambda: buckets([np.arange(3), ()], 1), TypeError, r"sequences\[1\]: found structure"),
        (lambda: buckets([np.arange(3), np.arange(0)], 1), ValueError, r"sequences\[1\]: found shape \(0,\)"),
        (lambda: buckets((np.ones((4, 3, 2)), np.ones((4, 3))), 1), ValueError, r"sequences\[1\]: found .*\['T', 3\]"),
        (lambda: buckets([np.arange(3)], 1, lengths=[2]), ValueError, r"lengths: found \[2\], expected one of at l"),
        (lambda: buckets([np.arange(3)], 1, lengths=0), ValueError, "lengths: found 0, expected at least 1"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_batches_are_the_source_of_a_grain_loader():
    batches = buckets([np.full(n % 7 + 1, n) for n in range(40)], 4, lengths=3)
    loader = grain.MapDataset.source(batches).shuffle(seed=1).to_iter_dataset()
    loaded = list(loader)
    assert all(isinstance(batch, Batch) for batch in loaded)
    assert [b.ids.tolist() for b in loaded] != [b.ids.tolist() for b in batches]
    in_order = sorted(loaded, key=lambda batch: (batch.mask.shape, batch.ids.tolist()))
    want = sorted(batches, key=lambda batch: (batch.mask.shape, batch.ids.tolist()))
    jax.tree.map(np.testing.assert_array_equal, in_order, want)
