"""Programs as they are read, of a compiler that is there; those of accelerators are compiled by the command alone."""

import jax
import jax.numpy as jnp

from tests.accelerators.program import loop, read
from tests.accelerators.promises import FLOORS, Figures, above_at_once, above_floors, broken


def program(function, *args):
    compiled = read(jax.jit(function).lower(*args).compile().as_text(), "cpu")
    return compiled, loop(compiled, compiled.entry)


def test_loops_are_found_as_often_as_they_run():
    def nested(h):
        def outer(h, _):
            return jax.lax.scan(lambda h, _: (jnp.tanh(h @ h), None), h, length=5)[0], None

        return jax.lax.scan(outer, h, length=7)[0]

    _, whole = program(nested, jnp.ones((4, 4)))
    assert [(depth, inner.trips) for depth, inner in whole.nested()][-1] == (2, 5)
    assert [n for n, _ in whole.steps()] == [35]
    assert whole.total() >= 35 * 2  # a product and a tanh


def test_what_is_promised_is_missed_where_it_is_not_so():
    def sorted_until(h):
        return jax.lax.while_loop(lambda h: h.sum() < 10, lambda h: jnp.sort(h) + 1, h)

    found = broken(*program(sorted_until, jnp.ones(4)), 50, 3)
    assert any("sort" in what for what in found)
    assert any("trip count" in what for what in found)
    assert broken(*program(lambda h: jnp.tanh(h @ h), jnp.ones((4, 4))), 50, 3) == []


def test_floors_are_beside_the_better_of_the_scans():
    scans = [Figures(1000, 10.0, launches=100), Figures(500, 20.0, launches=200)]
    assert above_floors("gpu", Figures(400, 5.5, launches=250), scans) == []
    (kernels, launches, memory) = above_floors("gpu", Figures(450, 6.0, launches=251), scans)
    assert kernels == "kernels: 0.90 of the better scan, at most 0.85"
    assert launches.startswith("launches: 2.51")
    assert memory.startswith("memory: 0.60")
    scans = [Figures(1, 1.0, cycles=100.0)]
    assert above_floors("tpu", Figures(10**9, 1e9, cycles=86.0), scans) == [
        f"cycles: 0.86 of the better scan, at most {FLOORS['tpu']['cycles']}"
    ]


def test_kernels_that_are_not_in_proportion_to_time():
    assert above_at_once([100, 120, 160]) == []
    assert above_at_once([100, 120, 161]) == ["kernels grow by 1.61, at most 1.6"]
    assert above_at_once([1201, 1201]) == ["1201 kernels, at most 1200"]
