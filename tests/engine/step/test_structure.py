"""What a pullback is said not to depend on, its Jacobian is zero in."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.kinds import kinds

from jax_bptt.engine.step.graph import trace
from jax_bptt.engine.step.structure import alignments, compose, is_identity, join


def moved(d):
    """δ through all that moves elements."""
    turned = jnp.flip(d.T, 0)
    wide = jnp.concatenate([turned[1:], jnp.pad(turned, ((1, 0), (0, 2)))[:, :-2][:2] * 3])
    parts = jnp.split(wide, 2, axis=1)
    stacked = jnp.stack([parts[0], 2 * parts[1]])
    return {
        "wide": wide,
        "stacked": stacked,
        "flat": jnp.reshape(d * 2, -1),
        "split": jnp.reshape(jnp.reshape(d, -1), (2, -1)),
        "outer": jnp.einsum("ij,k->ikj", d, jnp.arange(3.0)),
        "rows": (d @ jnp.ones((d.shape[1], 2)))[None],
        "cumulative": jnp.cumsum(d, axis=0),
        "sum": d.sum(0) + d[0],
        "strided": d[:, ::2],
        "looped": jax.lax.fori_loop(0, 2, lambda _, a: a @ jnp.ones((d.shape[1],) * 2), d),
        "constant": jnp.ones(3),
    }


def allowed_of(alignment, shape, d):
    """Where the derivative of an array of that shape by δ may be other than zero."""
    allowed = np.full((*shape, *d.shape), alignment is not None)
    for axis, units in enumerate(alignment or ()):
        if units is not None:
            place = np.arange(d.shape[axis]).reshape([-1 if a == axis else 1 for a in range(d.ndim)])
            allowed &= np.broadcast_to(units, shape)[(..., *[None] * d.ndim)] == place
    return allowed


def aligned(function, d):
    graph = trace(function, d)
    return alignments(graph, graph.inputs[0], graph.outputs)


def test_what_moves_elements():
    d = np.random.default_rng(0).normal(size=(4, 6))
    names = sorted(moved(d))
    found = dict(zip(names, aligned(moved, d), strict=True))
    exactly = set()
    for name, of in jax.jacrev(moved)(d).items():
        allowed = allowed_of(found[name], of.shape[: of.ndim - d.ndim], d)
        assert not np.asarray(of)[~allowed].any()
        exactly |= {name} if (np.asarray(of != 0) == allowed).all() else set()
    assert exactly >= {"wide", "stacked", "flat", "split", "rows", "strided", "constant"}
    assert [units is None for units in found["looped"]] == [True, True]
    assert [units is None for units in found["cumulative"]] == [True, False]
    assert [units is None for units in found["sum"]] == [True, False]


@pytest.mark.parametrize("name", ["minGRU", "LRU", "spikes, ALIF", "layer norm block", "graph messages", "delta rule"])
def test_jacobians_of_steps(name):
    kind = next(kind for kind in kinds() if kind.name == name)
    params, state, xs = kind._replace(T=1, B=1).arguments()
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda s: s[0] + 0.1, state))
    random = np.random.default_rng(0)
    for i, leaf in enumerate(leaves):

        def pulled(d, i=i):
            def after(params, leaves):
                return jax.tree.leaves(kind.step(params, jax.tree.unflatten(structure, leaves), xs[0, 0])[0])[i]

            return jax.vjp(after, params, leaves)[1](d)

        found, run = aligned(pulled, leaf), jax.jit(pulled)
        for place in random.integers(leaf.size, size=6):
            unit = (np.arange(leaf.size) == place).reshape(leaf.shape).astype(leaf.dtype)
            for alignment, of in zip(found, jax.tree.leaves(run(unit)), strict=True):
                may_be = np.full(of.shape, alignment is not None)
                for at, units in zip(np.argwhere(unit)[0], alignment or (), strict=alignment is not None):
                    may_be &= True if units is None else np.broadcast_to(units == at, of.shape)
                assert not np.asarray(of)[~may_be].any()


def test_which_jacobians_are_elementwise():
    def identities(name):
        kind = next(kind for kind in kinds() if kind.name == name)._replace(T=1, B=1)
        params, state, xs = kind.arguments()
        step = jax.vjp(lambda s: kind.step(params, s, xs[0, 0])[0], state[0])[1]
        graph = trace(step, state[0])
        return [
            is_identity(a, state[0].shape) for a in alignments(graph, graph.inputs[0], graph.outputs) if a is not None
        ]

    assert identities("minGRU") == [True]
    assert identities("LRU") == [False]  # of which only one axis is
    assert identities("layer norm block") == [False]


def test_sums_and_compositions():
    rows, columns = np.arange(3)[:, None], np.arange(4)[None]
    assert join((rows, columns), None) == (rows, columns)
    (first, second) = join((rows, columns), (rows, columns + 1))
    assert (first == rows).all()
    assert second is None
    some, more = np.array([0, 1, -1, -1]), np.array([-1, -1, 0, 1])
    assert (join((some,), (more,))[0] == [0, 1, 0, 1]).all()
    assert join((), None) == ()
    doubled = np.array([1, -1, 0])
    assert (compose((doubled,), (np.array([2, 0, -1, 1])[:, None],), 2)[0].ravel() == [0, 1, -1, -1]).all()
    assert compose((doubled,), (None,), 2) == (None,)
    assert compose((None,), (doubled,), 1) == (None,)
    for outer, inner in itertools.product([None, ()], repeat=2):
        assert compose(outer, inner, 0) == (() if outer == inner == () else None)
