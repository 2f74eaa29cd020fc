"""A recurrence of whole steps: one `lax.scan` with all of a step in its body, which JAX differentiates.

It is what `jax.grad` of a user's own scan does: what the pullback reads of each step is saved, and the gradient of each
of the params summed up in the reverse loop. `plan.is_better_whole` says of which steps that is better than to cut them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jax_bptt.engine.call import Call
from jax_bptt.engine.flatten import FlatCall, put_back, reset_to_of, unflatten_state
from jax_bptt.engine.leaves import Leaves, axes_of, combine, differentiable, handing_back, only, vary, varying, zeros
from jax_bptt.engine.objective import Objective
from jax_bptt.engine.platforms import by_platform
from jax_bptt.engine.window_gradient import Gradient
from jax_bptt.engine.windows import vmap_leading
from jax_bptt.model import PyTree


def scan_whole(
    call: Call, unroll: int | bool, emit: Callable[[PyTree, PyTree], PyTree] = lambda outputs, _: outputs
) -> tuple[PyTree, PyTree]:
    """The state after the last step, and what was emitted, of `[T, …]`.

    Args:
        unroll: steps in one body of the loop.
        emit: makes of a step's outputs and targets, of `[B, …]`, what is returned of every step.
    """
    step_of_all = vmap_leading(call.step, (None, 0, 0), call.batch)
    axes, structure, reset_to = axes_of((call.state, call.xs)), jax.tree.structure(call.state), reset_to_of(call)
    params = jax.tree.map(lambda p: vary(p, axes), call.params)

    def step(state: PyTree, of_step: tuple[PyTree, PyTree, Any, Any]) -> tuple[PyTree, PyTree]:
        x, targets, reset, gate = of_step
        leaves = jax.tree.leaves(state)
        leaves = leaves if gate is None else combine(handing_back(gate, differentiable(leaves)), leaves)
        before = jax.tree.unflatten(structure, put_back(reset, reset_to, leaves))
        after, outputs = step_of_all(params, before, x)
        return jax.tree.map(lambda new, old: vary(new, varying(old)), after, state), emit(outputs, targets)

    timed = call.xs, call.targets, call.reset, call.gate
    return jax.lax.scan(step, call.state, timed, length=call.steps, unroll=unroll)


def gradient_of_whole(call: Call, flat: FlatCall, objective: Objective) -> tuple[Leaves, Gradient]:
    """The state after the last step, and the exact gradient of losses, none of them masked, in a call's own order.

    In the place of weights there are the params themselves; a state to reset to is a constant. Leaves of the state that
    are ours are left as they are.
    """
    params, xs = jax.tree.leaves(call.params), flat.inputs.x[: len(jax.tree.leaves(call.xs))]
    after = call._replace(targets=objective.targets, reset=flat.inputs.reset, gate=flat.inputs.gate)
    after = after._replace(steps=flat.inputs.steps)

    def losses(outputs: PyTree, targets: PyTree) -> jax.Array:
        return objective.pull(outputs, targets, None, call.batch)[0].sum()

    def total(unroll: int | bool, some_params: Leaves, some_state: Leaves, some_xs: Leaves) -> tuple[jax.Array, Leaves]:
        moving = after._replace(
            params=jax.tree.unflatten(jax.tree.structure(call.params), combine(some_params, params)),
            state=unflatten_state(call, combine(some_state, flat.state)),
            xs=jax.tree.unflatten(jax.tree.structure(call.xs), combine(some_xs, xs)),
        )
        end, of_steps = scan_whole(moving, unroll, losses)
        return of_steps.sum(), jax.tree.leaves(end)

    start = flat.recurrence.with_delta(differentiable(flat.state))
    wanted: tuple[Any, ...] = flat.wrt_params, start, only(flat.wrt.xs[: len(xs)], xs)

    def run(unroll: int | bool) -> Any:
        return jax.value_and_grad(functools.partial(total, unroll), argnums=(0, 1, 2), has_aux=True)(*wanted)

    (loss, end), (params_bar, start_bar, xs_bar) = by_platform(run, *flat.recurrence.bodies)
    reset_bar = zeros((), flat.wrt.reset_to)
    return [*end, *flat.state[len(end) :]], Gradient(loss, params_bar, start_bar, reset_bar, [], xs_bar)
