"""What of a step runs where, and why: the split as it was found, in words.

For whoever's step is slower than they thought: products that are listed in a loop run once per step of time, those of
rows for all steps and examples at once.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.engine.call_plan import sums_lose_nothing, traffic_of
from jax_bptt.engine.flatten import Wanted, flatten_call
from jax_bptt.engine.leaves import Leaves, differentiable, nbytes
from jax_bptt.engine.plan import AT_ONCE_FROM, Solvable, default_save, is_better_whole
from jax_bptt.engine.step.equations import Equation, shape_of
from jax_bptt.engine.step.graph import trace
from jax_bptt.engine.step.primitives import is_costly
from jax_bptt.engine.step.pullback import transition_partials
from jax_bptt.engine.step.structure import Alignment, is_identity
from jax_bptt.engine.step.traffic import Traffic
from jax_bptt.engine.windows import without_leading
from jax_bptt.model import Model, PyTree, Save, step_of


class Placement(NamedTuple):
    """What of a step runs where; `str` tells all of it."""

    rooms: dict[str, tuple[str, ...]]
    """By the place, and why they are there: operations, those that are costly by themselves and with their shapes."""
    save: Save  # what is saved of a step where the user leaves it to us
    saved_bytes: dict[Save, int]
    """Of one step of one example, by what is saved; of "boundaries", nothing but the states between windows."""
    whole: bool
    """Whether exact BPTT leaves the step whole by default, one loop body as by `jax.grad`, not in these rooms."""
    traffic: Traffic
    """What a time step of all examples moves through memory, by either plan; of an opaque one nothing is counted."""
    jacobian: dict[str, str]
    """Per leaf of the state, what ∂h_t/∂h_{t−1} makes of δ on its way to it: elementwise, or through products."""
    solvable: Solvable
    """Whether δ, and the states, are solved for all steps at once on a GPU, by exact BPTT at its defaults."""

    def __str__(self) -> str:
        sizes = ", ".join(f"{size} with {save!r}" for save, size in self.saved_bytes.items())
        told = {place: found or ("—",) for place, found in self.rooms.items()}
        told[f"saved of a step of one example, by default {self.save!r}"] = (f"bytes: {sizes}",)
        told["exact BPTT, by default"] = (self._weighed(),)
        told["∂h_t/∂h_{t−1}"] = tuple(f"{name}: {text}" for name, text in self.jacobian.items())
        told["on a GPU, by default"] = (self._solved(),)
        return "\n".join(line for title, found in told.items() for line in (title, *(f"    {text}" for text in found)))

    def _solved(self) -> str:
        if not self.solvable.backwards:
            return "states and δ in loops over time"
        return f"{'states and δ' if self.solvable.forwards else 'δ, not the states,'} solved for all steps at once"

    def _weighed(self) -> str:
        if self.traffic.opaque and not self.whole:
            return "cut into these rooms, in windows of one step, so that sums are kept in single precision"
        if self.traffic.opaque:
            return "whole, as by jax.grad: there is something costly in it that is no product"
        moved, saved = (
            f"{cut:.0f} bytes cut, {whole:.0f} left whole"
            for whole, cut in (
                (self.traffic.whole, self.traffic.cut),
                (self.traffic.saved_whole, self.traffic.saved_cut),
            )
        )
        plan = "whole, as by jax.grad" if self.whole else "cut into these rooms"
        return f"{plan}: a time step moves {moved}, and for the backward pass it saves {saved}"


def explain(model: Model, params: PyTree, state: PyTree, xs: PyTree = None, *, length: int | None = None) -> Placement:
    """What of a step runs where, and why, where all gradients are asked for, of a loss that all outputs count in.

        h_t, ŷ_t = step(θ, h_{t−1}, x_t),    δ_{t−1} = credit_{t−1} + (∂h_t/∂h_{t−1})ᵀ δ_t

    Args:
        model: `step(params, state, x) -> (state, output)` of one example, or a `Cell`.
        params, state, xs: what it is run with; `state` of `[B, …]`, `xs` of `[T, B, …]`, or None where the step has no
            input. Nothing is computed of them.
        length: T where there are no xs.

    Returns:
        A `Placement`, to be printed.

    Raises:
        TypeError, ValueError: for an argument that is not of this form.
    """
    call = check_call(step_of(model), None, Arguments(params, state, xs, length=length))
    everything = Wanted(params=True, xs=True, state=True)
    flat = flatten_call(call, everything, jax.tree.leaves(call.state))
    recurrence = flat.recurrence
    save = default_save(recurrence.pullback.recomputation, call.steps, recurrence.rows)
    traffic = traffic_of(flat, save)
    parts, pullback, before = recurrence.parts, recurrence.pullback, recurrence.state
    weights, x = without_leading(recurrence.weights, 0), jax.tree.leaves(without_leading(call.xs, 2))
    drive = jax.eval_shape(parts.project, weights, x)
    rows = before, drive, before, pullback.residuals
    reads = jax.eval_shape(pullback.fix, weights), jax.eval_shape(pullback.linearise, weights, *rows)

    fixed, delta = _operations(pullback.fix, weights), recurrence.with_delta(before)

    def partials(weights: Leaves, rows: tuple[Leaves, Leaves, Leaves, Leaves], deltas: Leaves) -> tuple[Leaves, Leaves]:
        of_what = differentiable(weights), pullback.has_drive_bar
        return transition_partials(pullback.again, weights, rows, deltas, of_what)

    not_derived = [s for s, is_derived in zip(before, pullback.derived, strict=True) if not is_derived]
    names = [f"state{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(call.state)]
    rooms = {
        "once: from params alone": (*_operations(parts.prepare, jax.tree.leaves(call.params)), *fixed),
        "all rows, before the forward loop: from inputs, not from the state": _operations(parts.project, weights, x),
        "forward loop: the state after the step": _operations(pullback.advance, weights, before, drive),
        "all rows: the output, the state after the step given": _operations(parts.readout, weights, before, x, before),
        "all rows, between the loops: from states, not from δ": _operations(pullback.linearise, weights, *rows),
        "reverse loop: δ": _operations(pullback.pull, *reads, delta),
        "all rows, after the reverse loop: from δ, the gradients of weights": _operations(
            partials, weights, rows, delta
        ),
    }
    saved_bytes: dict[Save, int] = {
        "dots": sum(map(nbytes, [*not_derived, *pullback.residuals])),
        "states": sum(map(nbytes, before)),
        "boundaries": 0,
    }
    found = pullback.jacobian()
    jacobian = {name: _told([row[j] for row in found], before[j].shape, names) for j, name in enumerate(names)}
    whole = is_better_whole(traffic) and sums_lose_nothing(flat.wrt_params)
    solvable = Solvable() if whole or call.steps < AT_ONCE_FROM else recurrence.solvable
    return Placement(rooms, save, saved_bytes, whole, traffic, jacobian, solvable)


def _told(of_leaves: list[Alignment | None], shape: tuple[int, ...], names: list[str]) -> str:
    """What δ of a leaf of that shape before the step is made of, told by how it depends on those after it."""
    roots = [name for name, alignment in zip(names, of_leaves, strict=False) if alignment is not None]
    if not all(alignment is None or is_identity(alignment, shape) for alignment in of_leaves):
        return "through products, or other operations that are not elementwise"
    return f"elementwise, of δ of {', '.join(roots)}" if roots else "nothing reaches it"


def _operations(function: Callable, *arguments: PyTree) -> tuple[str, ...]:
    """Costly ones by themselves, with their shapes, and others together, with their number."""
    equations = trace(function, *arguments).equations
    cheap = Counter(eqn.primitive.name for eqn in equations if not is_costly(eqn))
    others = ", ".join(name if count == 1 else f"{count} {name}" for name, count in cheap.items())
    return (*(_shapes(eqn) for eqn in equations if is_costly(eqn)), *([others] if others else []))


def _shapes(eqn: Equation) -> str:
    read, made = (", ".join(str(list(shape_of(atom).shape)) for atom in atoms) for atoms in (eqn.invars, eqn.outvars))
    return f"{eqn.primitive.name} of {read} → {made}"
