import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
from jax.experimental import io_callback

from jax_bptt.engine.step.graph import trace
from jax_bptt.engine.step.partition import derived_states, minimum_cut


@st.composite
def graphs(draw):
    """Values 0 … n−1, each computed from some of the earlier ones; sizes; sources; sinks."""
    n = draw(st.integers(1, 8))
    before = {v: draw(st.lists(st.integers(0, v - 1), unique=True, max_size=3)) if v else [] for v in range(n)}
    size = {v: draw(st.integers(1, 5)) for v in range(n)}
    return before, size, *(draw(st.lists(st.integers(0, n - 1), unique=True)) for _ in range(2))


def separates(cut, before, sources, sinks):
    reached = set()
    for v in before:  # in order of computation
        if v not in cut and (v in sources or any(u in reached for u in before[v])):
            reached.add(v)
    return not reached & set(sinks)


@hypothesis.given(graphs())
@hypothesis.settings(max_examples=300)
def test_equals_the_best_of_all_cuts(graph):
    before, size, sources, sinks = graph
    cut = minimum_cut(before, size, sources, sinks)
    assert separates(cut, before, sources, sinks)
    every = itertools.chain.from_iterable(itertools.combinations(before, n) for n in range(len(before) + 1))
    best = min(sum(size[v] for v in c) for c in every if separates(c, before, sources, sinks))
    assert sum(size[v] for v in cut) == best


def test_of_several_the_last_is_taken():
    before = {"product": [], "sum": ["product"], "gate": ["sum"]}
    assert minimum_cut(before, dict.fromkeys(before, 3), ["product"], ["gate"]) == ["gate"]
    assert minimum_cut(before | {"half": ["gate"]}, dict.fromkeys(before, 3) | {"half": 1}, ["sum"], ["half"]) == [
        "half"
    ]


def test_a_leaf_of_the_state_that_a_side_effect_makes_is_not_computed_again():
    def transition(weights, before, drive):
        count = before[0] + 1
        return [count, io_callback(lambda c: c, jax.ShapeDtypeStruct((), count.dtype), count)]

    graph = trace(transition, [], [jnp.zeros(()), jnp.zeros(())], [])
    assert derived_states(graph, graph.inputs, []) == (False, False)
    pure = trace(lambda count, told: [count + 1, jnp.sin(count + 1)], jnp.zeros(()), jnp.zeros(()))
    assert derived_states(pure, pure.inputs, []) == (False, True)


def test_a_leaf_that_another_one_was_derived_from_is_saved():
    graph = trace(lambda a, b, x: [b, x], *[jnp.zeros(2)] * 3)
    a, b, x = graph.inputs
    assert derived_states(graph, [a, b], [x]) == (True, False)
