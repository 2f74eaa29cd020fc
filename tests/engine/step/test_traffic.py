"""What a step moves: which steps are left whole, and that of those is saved what JAX saves; nothing is timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.kinds import kinds
from benchmarks.zoo import by, by_bptt

import jax_bptt as jb

KINDS = {kind.name: kind for kind in kinds()}
WHOLE = {
    *("convolutional emulator, 1-d", "recurrent convolution, 2-d", "ConvLSTM"),  # kernels are no products
    *("rigid-body chain", "Kalman filter", "oscillators with substeps", "inner fixed point"),  # solvers, loops
    *("attention over a carried memory", "attention over a cache", "delay line"),  # a state that hardly changes
    *("delta rule", "addressable memory", "sparse recurrence", "experts"),  # large states, or gathers of weights
}


def explained(kind):
    params, state, xs = kind.arguments()
    xs = jnp.zeros((kind.T, kind.B, 0)) if xs is None else xs
    return jb.diagnostics.explain(kind.step, params, state, xs)


def saved_by_scans(function, *arguments):
    """The bytes that the loops of a program stack up of all steps, those of the loop that saves most."""

    def scans(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                yield eqn
            else:
                for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from scans(inner)

    def stacked(eqn):
        body = eqn.params["jaxpr"]
        outs = zip(eqn.outvars, getattr(body, "jaxpr", body).outvars, strict=True)
        return sum(int(np.prod(v.aval.shape)) * v.aval.dtype.itemsize for v, of_step in outs if v.aval != of_step.aval)

    return max(map(stacked, scans(jax.make_jaxpr(function)(*arguments).jaxpr)))


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_whole_or_cut_by_what_they_move(name):
    found = explained(KINDS[name])
    counts_spectrum = name == "outputs only looked at"  # here, where all outputs count
    assert found.whole == (name in WHOLE or counts_spectrum), found.traffic
    assert ("cut into these rooms" in str(found)) != found.whole


@pytest.mark.parametrize(("B", "H"), [(1, 128), (1, 512), (32, 128), (32, 256), (128, 64), (64, 512)])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_cells_are_cut(name, B, H):
    cell = getattr(jb.cells, name)(64, H, 64)
    params, xs = cell.init(jax.random.key(0)), jnp.zeros((64, B, 64))
    assert not jb.diagnostics.explain(cell, params, cell.initial_state(B), xs).whole


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_of_whole_steps_as_much_is_saved_as_by_jax_grad(name):
    kind = KINDS[name]._replace(T=5)
    arguments = kind.arguments()
    plain = saved_by_scans(by(jax.lax.scan, kind), *arguments)
    assert saved_by_scans(by_bptt(kind), *arguments) == plain
    assert saved_by_scans(by(jb.scan, kind), *arguments) == plain


@pytest.mark.parametrize("name", ["GRU, 8 steps", "minGRU", "graph messages", "policy through physics", "spikes, ALIF"])
def test_what_jax_grad_saves_is_estimated(name):
    kind = KINDS[name]._replace(T=5)
    found = explained(kind).traffic.saved_whole
    saved = saved_by_scans(by(jax.lax.scan, kind), *kind.arguments()) / kind.T
    assert 0.8 * saved <= found <= 1.25 * saved


@pytest.mark.parametrize("name", ["spikes, LIF, 16 steps", "GRU, 8 steps", "world model", "Lorenz system"])
def test_few_steps_take_no_more_memory_than_by_jax_grad(name):
    kind = KINDS[name]
    sizes = [
        jax.jit(way).lower(*kind.arguments()).compile().memory_analysis().temp_size_in_bytes
        for way in (by_bptt(kind), by(jax.lax.scan, kind))
    ]
    assert sizes[0] <= 1.05 * sizes[1]
