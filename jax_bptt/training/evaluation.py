"""The loss of a long sequence, window by window."""

import jax

from jax_bptt.checks.calls import over_sequences
from jax_bptt.checks.options import check_options
from jax_bptt.engine import schedule
from jax_bptt.engine.call import Call
from jax_bptt.engine.flatten import flatten_call, unflatten_state
from jax_bptt.engine.forward import Rows, read_rows, run_forward
from jax_bptt.engine.objective import objective_of
from jax_bptt.engine.plan import choose_windows
from jax_bptt.model import Loss, Model, OverSequences, PyTree, Reduction, step_of


def evaluate(
    model: Model, loss: Loss, *, reduction: Reduction = "mean", window: int | None = None
) -> OverSequences[tuple[jax.Array, PyTree]]:
    """The loss of a long sequence, in the memory of one window, whatever its length.

        L = Σ_t mask_t·ℓ(ŷ_t, y_t),    h_t, ŷ_t = step(θ, h_{t−1}, x_t)

    Args:
        model: as for `bptt`.
        loss: as for `bptt`, or any other number to tell of a step, such as whether the most likely label is right.
        reduction: as for `bptt`; here the mean is the default.
        window: steps that are projected, read out and compared with their targets at once; chosen by
            `jax_bptt.engine.plan.default_window` where None.

    Returns:
        `evaluate(params, state, xs, targets, mask=None, reset=None, reset_state=None) -> (loss, state)`; the state is
        that after the last step. Pure, and not jitted.

    Raises:
        TypeError, ValueError: when built, for an option, and when called, for an argument, that is not of this form.
    """
    step = step_of(model)
    window = check_options(loss, reduction, 0, window=window)[1]["window"]

    @over_sequences(step, loss)
    def evaluated(call: Call) -> tuple[jax.Array, PyTree]:
        flat, scheduled = flatten_call(call, derive=False), schedule.exact(call.steps)
        recurrence, objective = flat.recurrence, objective_of(call, reduction, scheduled, derive=False)

        def losses(rows: Rows, of_window: tuple[PyTree, jax.Array | None]) -> jax.Array:
            axes = (rows.inputs.steps, *call.batch)
            return objective.pull(read_rows(recurrence, rows), *of_window, axes)[0].sum()

        windows, timed = choose_windows(call.steps, recurrence.rows, window=window), (objective.targets, objective.mask)
        run = run_forward(recurrence, flat.state, flat.inputs, windows, "boundaries", emit=losses, timed=timed)
        end, _, by_window = run
        total = sum((losses.sum() for losses in by_window if losses is not None), objective.zero)
        return total.astype(call.loss_dtype), unflatten_state(call, end)

    return evaluated
