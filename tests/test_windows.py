import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.windows import PerWindow, Windows, default_size, join, over, scan


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_a_loop_over_slices(steps, size, reverse):
    xs = jnp.arange(1.0, steps + 1)

    def body(carry, x, stored):
        start, length = stored
        return 2 * carry + x.sum() * start, (carry * x, x.shape[0] == length)

    starts = list(range(0, steps, size))
    lengths = [min(size, steps - start) for start in starts]
    windows = Windows(steps, size)
    full = windows.full
    stored = PerWindow(
        (jnp.asarray(starts[:full], float), jnp.asarray(lengths[:full])),
        (starts[-1], lengths[-1]) if windows.rest else None,
    )
    carry, out = scan(body, 1.0, xs, windows, stored=stored, reverse=reverse)

    want, outs = 1.0, {}
    for start, length in sorted(zip(starts, lengths, strict=True), reverse=reverse):
        x = np.asarray(xs[start : start + length])
        outs[start] = want * x
        want = 2 * want + x.sum() * start
    np.testing.assert_allclose(carry, want)
    np.testing.assert_allclose(join(PerWindow(*(o and o[0] for o in out))), np.concatenate([outs[s] for s in starts]))
    assert all(np.all(o[1]) for o in out if o is not None)


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_over_equals_loops(axes):
    rng = np.random.default_rng(0)
    weights, a, b = rng.normal(size=5), rng.normal(size=(*range(2, 2 + axes), 5)), rng.normal(size=range(2, 2 + axes))
    got = over(lambda w, row: {"y": w @ row["a"] + row["b"]}, (None, 0), axes)(weights, {"a": a, "b": b})
    want = np.empty(b.shape)
    for row in np.ndindex(b.shape):
        want[row] = weights @ a[row] + b[row]
    np.testing.assert_allclose(got["y"], want)


@pytest.mark.parametrize("batch", [1, 8, 32, 128, 5000])
def test_default_size_divides_where_it_can_and_stays_near_what_is_wanted(batch):
    for steps in range(1, 1000):
        size = default_size(steps, batch, "states")
        assert min(steps, 8) <= size <= 128
        assert steps % size == 0 or not any(steps % s == 0 for s in range(size // 2 + 1, 2 * size))
        size = default_size(steps, batch, "boundaries")
        assert np.sqrt(steps) / 2 - 1 <= size <= 2 * np.sqrt(steps) + 1


def test_default_size_by_example():
    assert default_size(512, 32, "states") == 32
    assert default_size(1024, 1, "states") == 64
    assert default_size(64, 32, "states") == 16
    assert default_size(10, 32, "states") == 10
    assert default_size(65536, 8, "boundaries") == 256
