"""python -m tests.benchmarks.scans: cells that are written for a batch, by `lax.scan` and by `jb.scan`, in turns.

Beside them `jb.bptt` of the very same step, of one example. The body computes the loss, as that of `jb.bptt` does, so
that no outputs are kept. Told are medians of time, and temporary memory.

The losses that `jb.scan` returns take one product more, that of the readout in the forward pass, which the reverse pass
does again rather than save; `jb.bptt` has them of the reverse pass. So `jb.scan` is measured without them, too.
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import jax_bptt as jb
from tests.benchmarks.measure import compiled, measure

SHAPES = [(512, 32, 64, 128, 64), (1024, 1, 32, 128, 32), (512, 128, 64, 64, 64), (256, 64, 128, 512, 128)]
WHO = ("lax.scan", "jb.scan", "no losses", "jb.bptt")
GATES = {"elman": 1, "gru": 3, "lstm": 4}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scans", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed (default 9)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args(argv)
    print(f"{'':36}" + "".join(f"{who:>22}" for who in WHO) + f"{'scan / bptt: with losses, without, memory':>44}")
    for name in GATES:
        for shape in [(8, 3, 2, 4, 2)] if options.quick else SHAPES:
            print(_row(name, shape, options.repeats), flush=True)


def step(name: str, params: dict[str, jax.Array], state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step, of arrays with any axes before the last one; an LSTM's h and c are one array."""
    h = state[..., : params["A"].shape[0]]
    recurrent, driven = h @ params["A"], x @ params["B"]
    gates = GATES[name]
    if name == "elman":
        state = jnp.tanh(recurrent + driven)
    elif name == "gru":
        (a, b, c), (r, z, n) = (jnp.split(of, gates, axis=-1) for of in (recurrent, driven))
        z = jax.nn.sigmoid(b + z)
        state = z * h + (1 - z) * jnp.tanh(n + jax.nn.sigmoid(a + r) * c)
    else:
        i, f, g, o = jnp.split(recurrent + driven, gates, axis=-1)
        c = jax.nn.sigmoid(f) * state[..., params["A"].shape[0] :] + jax.nn.sigmoid(i) * jnp.tanh(g)
        state = jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], axis=-1)
    return state, state[..., : params["A"].shape[0]] @ params["C"]


def by(scan: Callable, name: str) -> Callable:
    """Loss and gradient of a body that is written for a batch, by that scan."""

    def loss(
        params: dict[str, jax.Array], state: jax.Array, xs: jax.Array, ys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def body(state: jax.Array, xy: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            state, output = step(name, params, state, xy[0])
            return state, 0.5 * ((output - xy[1]) ** 2).sum()

        state, losses = scan(body, state, (xs, ys))
        return losses.sum(), state

    return jax.value_and_grad(loss, has_aux=True)


def _row(name: str, shape: tuple[int, ...], repeats: int) -> str:
    T, B, I, H, O = shape
    keys = iter(jax.random.split(jax.random.key(0), 5))
    gates, halves = GATES[name], 2 if name == "lstm" else 1
    params = {
        "A": jax.random.normal(next(keys), (H, gates * H)) / H**0.5,
        "B": jax.random.normal(next(keys), (I, gates * H)) / I**0.5,
        "C": jax.random.normal(next(keys), (H, O)) / H**0.5,
    }
    xs, ys = jax.random.normal(next(keys), (T, B, I)), jax.random.normal(next(keys), (T, B, O))
    args = params, jnp.zeros((B, halves * H)), xs, ys
    by_scan = by(jb.scan, name)
    gradients = (
        by(jax.lax.scan, name),
        by_scan,
        lambda *arguments: (None, by_scan(*arguments)[1]),
        jb.bptt(lambda *arguments: step(name, *arguments), jb.losses.squared_error),
    )
    contenders = [
        compiled(who, gradient, args, lambda made: (made[1]["A"],))
        for who, gradient in zip(WHO, gradients, strict=True)
    ]
    measured = measure(contenders, repeats)
    worst = max(one.difference for one in measured)
    if worst > 1e-3:
        raise SystemExit(f"{name} {shape}: found gradients that differ by {worst:.1e}")
    sizes = [(one.temporary_bytes or 0) / 2**20 for one in measured]
    told = [f"{one.seconds * 1e3:.1f} ms, {size:.2f} MiB" for one, size in zip(measured, sizes, strict=True)]
    ratios = *(one.seconds / measured[3].seconds for one in measured[1:3]), sizes[1] / sizes[3]
    return (
        f"{name + ' ' + str(shape):36}" + "".join(f"{text:>22}" for text in told) + "".join(f"{r:8.2f}" for r in ratios)
    )


if __name__ == "__main__":
    main()
