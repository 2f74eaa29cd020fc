"""A step whose products read a state that is constant: the one that e-prop carries the exact influence of.

What counts as a product is whatever is costly: convolutions, solvers and loops, too. Those that only the output needs,
C h_t, read the state as it is.
"""

import jax

from jax_bptt.engine.leaves import is_key
from jax_bptt.engine.step import graph, primitives
from jax_bptt.engine.step.equations import results
from jax_bptt.model import PyTree, Step


def with_stopped_products(step: Step) -> Step:
    """The step, in which what its products read of the state before it has no derivative.

    What they read of params and inputs has one, as what is made of the state by other operations.
    """

    def stopped(params: PyTree, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        traced = graph.trace(step, params, state, x)
        n_params, n_state = (len(jax.tree.leaves(tree)) for tree in (params, state))
        needed, _ = graph.backward_slice(traced, traced.outputs[:n_state], lambda _: False)
        products = [v for eqn in needed if primitives.is_costly(eqn) for v in results(eqn)]
        leaves = jax.tree.leaves((params, state, x))
        constant = [_stop(a) if n_params <= i < n_params + n_state else a for i, a in enumerate(leaves)]
        made = graph.extract(traced, traced.inputs, products)(*constant)
        run = graph.extract_grouped(traced, [products, traced.inputs], traced.outputs, effects=True)
        return jax.tree.unflatten(traced.structure, run(made, leaves))

    return stopped


def _stop(value: jax.Array) -> jax.Array:
    return value if is_key(value) else jax.lax.stop_gradient(value)
