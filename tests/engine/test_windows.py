import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.engine.windows import PerWindow, Windows, join, scan_windows, vmap_leading


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_a_loop_over_slices(steps, size, reverse):
    xs = jnp.arange(1.0, steps + 1)

    def body(carry, x, stored, size):
        start, length = stored
        assert x.shape[0] == size
        return 2 * carry + x.sum() * start, (carry * x, size == length)

    starts = list(range(0, steps, size))
    lengths = [min(size, steps - start) for start in starts]
    windows = Windows(steps, size)
    full = windows.full
    stored = PerWindow(
        (jnp.asarray(starts[:full], float), jnp.asarray(lengths[:full])),
        (starts[-1], lengths[-1]) if windows.rest else None,
    )
    carry, out = scan_windows(body, 1.0, xs, windows, stored=stored, reverse=reverse)

    want, outs = 1.0, {}
    for start, length in sorted(zip(starts, lengths, strict=True), reverse=reverse):
        x = np.asarray(xs[start : start + length])
        outs[start] = want * x
        want = 2 * want + x.sum() * start
    np.testing.assert_allclose(carry, want)
    np.testing.assert_allclose(join(PerWindow(*(o and o[0] for o in out))), np.concatenate([outs[s] for s in starts]))
    assert all(np.all(o[1]) for o in out if o is not None)


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_vmap_over_leading_axes_equals_loops(axes):
    rng = np.random.default_rng(0)
    weights, a, b = rng.normal(size=5), rng.normal(size=(*range(2, 2 + axes), 5)), rng.normal(size=range(2, 2 + axes))
    got = vmap_leading(lambda w, row: {"y": w @ row["a"] + row["b"]}, (None, 0), b.shape)(weights, {"a": a, "b": b})
    told = vmap_leading(lambda w, row: {"y": w @ row["a"] + row["b"]}, (None, 0), [None] * axes)(
        weights, {"a": a, "b": b}
    )
    np.testing.assert_array_equal(got["y"], told["y"])
    want = np.empty(b.shape)
    for row in np.ndindex(b.shape):
        want[row] = weights @ a[row] + b[row]
    np.testing.assert_allclose(got["y"], want)


def test_vmap_of_nothing_takes_the_sizes_that_are_said():
    assert vmap_leading(lambda nothing: jnp.ones(2), 0, (3, 4))([None]).shape == (3, 4, 2)
