"""Recurrences inside larger models: `lax.scan`, with the library's backward pass.

`scan` takes the place of `lax.scan`, word for word; `unroll` runs a step of one example over a batch. A step that is
better left whole they leave to `lax.scan`; else either is a `jax.custom_vjp` around the forward and reverse passes: the
cotangents of the outputs take the place that those of the losses have in the gradient functions, and the cotangent of
the last state is where δ begins.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.options import check_computation, check_if_truncated
from jax_bptt.checks.trees import check_automatic
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call, arrays_of, close_step, vary_data
from jax_bptt.engine.call_plan import plan_of, sums_lose_nothing
from jax_bptt.engine.flatten import Reading, Wanted, flatten_call, unflatten_like, unflatten_state
from jax_bptt.engine.forward import Rows, read_rows, run_forward
from jax_bptt.engine.leaves import Leaves, differentiable
from jax_bptt.engine.objective import Objective
from jax_bptt.engine.passes import run_reverse
from jax_bptt.engine.plan import WHOLE, Asked, Plan, leaves_open
from jax_bptt.engine.schedule import Schedule
from jax_bptt.engine.whole_steps import scan_whole
from jax_bptt.engine.windows import join, vmap_leading
from jax_bptt.model import Model, PyTree, Save, step_of


def scan(
    f: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    init: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool | None = None,
    *,
    k1: int | None = None,
    k2: int | None = None,
    save: Save | None = None,
    window: int | None = None,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan`, whose derivative is BPTT, exact or truncated, by the library's reverse scan.

        c_t, y_t = f(c_{t−1}, x_t),    t = 1 … T

    It takes the place of `jax.lax.scan`: the same arguments in the same order, of the same meaning, with the same
    errors, and the same results up to rounding (a weak type becomes that which it stands for). `f` is written for one
    example, for a batch or for anything else, and its products with weights are found in it. Without k1 and k2 its
    gradient is exact, with respect to `init`, `xs` and all that `f` closes over. With them the cotangent of y_t travels
    back as a loss at t does in `truncated_bptt` with `losses="newest"`, and the cotangent of the last carry to the
    start of the last window. What only the ys need is computed with them, and again in the backward pass: of it nothing
    is saved. A body that moves less through memory whole than cut into its parts, or has a convolution, a solver or a
    loop in it, is left to `lax.scan` itself, where no truncation, `save` or `window` is asked for.

    Reverse mode, any number of times, and forward mode over it (`jax.hessian`, `jax.jvp` of `jax.grad`). Where the body
    is not left to `lax.scan`, forward mode alone (`jax.jvp`, `jax.jacfwd`) and `jax.linear_transpose` raise JAX's
    errors for a `custom_vjp`, as does the gradient of a `vmap` whose axis `f` names in a collective (not so the `vmap`
    of a gradient): there, and with a `Ref` that `f` closes over, use `lax.scan`.

    Args:
        f: `f(carry, x) -> (carry, y)`.
        init: the carry to begin with, any pytree.
        xs: what it is run over, a pytree of `[T, …]`; None where there is nothing.
        length: T, where xs does not tell.
        reverse: whether to run from the last x to the first; ys are in the order of xs.
        unroll: time steps in one body of the compiled loops; True for all steps of a window, which is less than all;
            None is 1, and on a GPU more, as for `bptt`, but of a body that is left to `lax.scan`.
        k1, k2: steps from one window's end to the next, and steps that a window reaches back over; both or neither.
            Second derivatives are those of the truncated gradient as a function: where a window begins moves with what
            is differentiated, which in those of `truncated_bptt` is held.
        save, window: as for `bptt`, by default the same on every platform.

    Returns:
        The last carry, and the ys, a pytree of `[T, …]`.

    Raises:
        TypeError, ValueError: as `lax.scan`, and for an option that is not of this form.

    Source:
        As `bptt` and `truncated_bptt`.
    """
    truncation = check_if_truncated(k1, k2)
    asked = check_computation(save, window=window)
    unrolled: Any = 1 if unroll is None else unroll
    # What is wrong with the arguments is for lax.scan to say, and what the carry's dtypes are where some are weak.
    last, _ = jax.eval_shape(lambda: jax.lax.scan(f, init, xs, length, reverse, unrolled))
    init, xs = jax.tree.map(jnp.asarray, (init, xs))
    init = jax.tree.map(lambda a, like: a if a.dtype == like.dtype else a.astype(like.dtype), init, last)
    steps: Any = next((leaf.shape[0] for leaf in jax.tree.leaves(xs)), length)
    steps = int(steps) if isinstance(steps, float | np.number | jax.Array) else steps
    if steps == 0:
        return jax.lax.scan(f, init, xs, length, reverse)
    for name, tree in (("init", init), ("xs", xs)):
        check_automatic(name, tree)
    nothing = dict.fromkeys(("loss", "params", "targets", "mask", "reset", "reset_state", "loss_dtype"))
    if unroll is not None:
        asked["unroll"] = True if unrolled is True else max(1, int(unrolled))
    call = Call(
        step=lambda _, carry, x: f(carry, x), state=init, xs=_in_order(xs, reverse), steps=steps, batch=(), **nothing
    )
    call = vary_data(call)
    step, constants = close_step(call)
    call = call._replace(step=lambda params, carry, x: step(params, None, carry, x), params=constants)
    read, plan = _whole_or_cut(call, truncation, asked)
    if plan is not None and plan.whole:
        return jax.lax.scan(f, init, xs, length, reverse, unrolled)
    carry, ys = _run(call, truncation, read, plan, asked)
    return carry, _in_order(ys, reverse)


def unroll(
    model: Model,
    params: PyTree,
    state: PyTree,
    xs: PyTree = None,
    *,
    length: int | None = None,
    reverse: bool = False,
    k1: int | None = None,
    k2: int | None = None,
    reset: Any = None,
    reset_state: PyTree = None,
    window: int | None = None,
    save: Save | None = None,
    unroll: int | None = None,
    parallel: int | None = None,
) -> tuple[PyTree, PyTree]:
    """Run a model over a batch of sequences; its derivative is BPTT, exact or truncated, by the library's reverse scan.

        h_t, ŷ_t = step(θ, h_{t−1}, x_t),    t = 1 … T

    `scan` of a step of one example, over a batch, under any loss and inside any model. Without k1 and k2 its gradient
    is exact. With them the cotangent of the output at step t travels back as a loss at t does in `truncated_bptt` with
    `losses="newest"`, and the cotangent of the last state to the start of the last window.

    It is differentiable with respect to params, state, xs, `reset_state` and what the step closes over, as `scan` is,
    and as there, a step that is better left whole is left to `lax.scan`.

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`.
        params, state, xs: what it is run with; `state` of `[B, …]`, `xs` of `[T, B, …]` or None.
        length: T, where xs does not tell.
        reverse: whether to run from the last x to the first; outputs, and resets, are in the order of xs.
        k1, k2: steps from one window's end to the next, and steps that a window reaches back over; both or neither.
        reset, reset_state: as in the call of what `bptt` returns, but that the gradient reaches `reset_state`.
        window, save, unroll: as for `scan`; `unroll` is a number.
        parallel: windows side by side in the backward pass; more take more memory, and are faster up to a point.

    Returns:
        The state after the last step, a pytree of `[B, …]`, and the outputs, one of `[T, B, …]`.

    Raises:
        TypeError, ValueError: for an argument that is not of this form.

    Source:
        As `bptt` and `truncated_bptt`.
    """
    truncation = check_if_truncated(k1, k2)
    asked = check_computation(save, window=window, parallel=parallel, unroll=unroll)
    arguments = Arguments(params, state, xs, reset=reset, reset_state=reset_state, length=length)
    call = check_call(step_of(model), None, arguments)
    call = vary_data(call)
    step, constants = close_step(call)
    call = call._replace(
        step=lambda params, state, x: step(params[1], params[0], state, x),
        params=(call.params, constants),
        xs=_in_order(call.xs, reverse),
        reset=_in_order(call.reset, reverse),
    )
    read, plan = _whole_or_cut(call, truncation, asked)
    is_whole = plan is not None and plan.whole
    last, outputs = scan_whole(call, unroll or 1) if is_whole else _run(call, truncation, read, plan, asked)
    return last, _in_order(outputs, reverse)


def _in_order(tree: PyTree, reverse: bool) -> PyTree:
    """In the order in which the steps are run, or back."""
    return jax.tree.map(lambda a: jnp.flip(a, 0), tree) if reverse else tree


def _schedule(call: Call, truncation: tuple | None) -> Schedule:
    return schedule.truncated(call.steps, *truncation) if truncation else schedule.exact(call.steps)


def _whole_or_cut(call: Call, truncation: tuple | None, asked: Asked) -> tuple[Reading, Plan | None]:
    """The step as it was read, and how it is computed if all of it is to be differentiated but xs; None if it is cut.

    What is opaque is left whole before its derivative is traced: it may have none, and only be run.
    """
    scheduled, read = _schedule(call, truncation), flatten_call(call, derive=False).recurrence.reading
    if not leaves_open(asked) or scheduled.grid is not None or not isinstance(call.steps, int):
        return read, None
    if not sums_lose_nothing(differentiable(jax.tree.leaves(call.params))):
        return read, None
    if read.parts.opaque or read.parts.opaque_readout:
        return read, WHOLE
    try:
        everything = Wanted(params=True, state=True), jax.tree.leaves(call.state)
        flat = flatten_call(call, *everything, earlier=read)
        return flat.recurrence.reading, plan_of(flat, scheduled)
    except Exception:  # whatever has no derivative with respect to all that it closes over, as a `custom_vjp` need not
        return read, None


def _run(
    call: Call, truncation: tuple | None, read: Reading, chosen: Plan | None, asked: Asked
) -> tuple[PyTree, PyTree]:
    """State and outputs of a call, whose step closes over nothing; derived by the reverse pass."""
    scheduled, (given, sizes) = _schedule(call, truncation), arrays_of(call)

    @jax.custom_vjp
    def run(given: dict[str, PyTree]) -> tuple[PyTree, PyTree]:
        return forwards(given)[0]

    def forwards(given: dict[str, PyTree], wanted: Wanted | None = None) -> Any:
        call, derive = sizes._replace(**given), wanted is not None
        end = jax.tree.leaves(call.state)
        flat = flatten_call(call, wanted or Wanted(), end, derive=derive, earlier=read).unrolled(asked.get("unroll"))
        plan = chosen or plan_of(flat, scheduled, at_once=False, **asked)

        def emit(rows: Rows, _: None) -> PyTree:
            return read_rows(flat.recurrence, rows)

        save = plan.save if derive else "boundaries"
        of_call = flat.recurrence, flat.state, flat.inputs, plan.windows, save
        end, checkpoints, outputs = run_forward(*of_call, emit=emit)
        return (unflatten_state(call, end), join(outputs)), checkpoints

    def forwards_to_derive(given: dict[str, PyTree]) -> Any:
        leaves, structure = jax.tree.flatten(given, is_leaf=lambda leaf: isinstance(leaf, CustomVJPPrimal))
        given = jax.tree.unflatten(structure, [leaf.value for leaf in leaves])
        perturbed = tuple(() if leaf.perturbed else None for leaf in leaves)  # told by structure, without arrays
        made, checkpoints = forwards(given, wanted_of(given, perturbed))
        return made, (given, perturbed, checkpoints)

    def wanted_of(given: dict[str, PyTree], perturbed: tuple) -> Wanted:
        wrt = jax.tree.unflatten(jax.tree.structure(given), [leaf is not None for leaf in perturbed])
        return Wanted(*(jax.tree.leaves(wrt[name]) for name in Wanted._fields))

    def backwards(saved: Any, cotangents: tuple[PyTree, PyTree]) -> tuple[dict[str, PyTree]]:
        given, perturbed, checkpoints = saved
        state_bar, outputs_bar = map(_present, cotangents)
        reads = tuple(bar is not None for bar in outputs_bar)
        call, wanted = sizes._replace(**given, reads=reads), wanted_of(given, perturbed)
        flat = flatten_call(call, wanted, state_bar, earlier=read).unrolled(asked.get("unroll"))
        state_bar += [None] * len(flat.recurrence.parts.once)
        objective = Objective(_pull_given, outputs_bar, None, jnp.zeros(()), reads)
        plan = chosen or plan_of(flat, scheduled, at_once=False, **asked)
        got = run_reverse(flat, checkpoints, objective, state_bar, scheduled, plan)
        # As many cotangents whatever is asked for: in JAX 0.7 one pullback may not return now more, now fewer.
        bars = {"state": got.start_bar, "xs": got.xs_bar, "reset": [None], "reset_state": got.reset_bar}
        of_data = {name: unflatten_like(given[name], bar) for name, bar in bars.items()}
        return (dict.fromkeys(given) | {"params": flat.pull_weights(got.weights_bar)} | of_data,)

    run.defvjp(forwards_to_derive, backwards, symbolic_zeros=True)
    return run(given)


def _pull_given(
    outputs: PyTree, cotangents: Leaves, mask: jax.Array | None, axes: tuple[int, ...]
) -> tuple[jax.Array, Leaves]:
    """Cotangents of outputs that are given, instead of those of losses, of which there are none."""
    if mask is not None:
        keep = vmap_leading(lambda m, c: jnp.where(m != 0, c, jnp.zeros_like(c)), 0, axes)
        cotangents = jax.tree.map(lambda c: keep(mask, c), cotangents)
    return jnp.zeros(()), cotangents


def _present(tree: PyTree) -> Leaves:
    """The leaves, with None for those that are zero, of what has no derivative or is not used."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    return [None if isinstance(leaf, SymbolicZero) or leaf.dtype == jax.dtypes.float0 else leaf for leaf in leaves]
