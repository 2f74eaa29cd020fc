"""Training: from a gradient to a trained network, one pure update after the other.

    (loss, carry), grads = gradient(params, carry, xs, targets)
    updates, opt_state   = optimizer.update(grads, opt_state, params)
    params               = params + updates

`train_step` does this once per chunk, with any gradient function; `train_online` every k1 steps, walking a chunk in one
scan, window by window or forwards in time. Either makes `update(train_state, xs, targets, *, mask=None, reset=None)`,
from one `TrainState` to the next, to be jitted, scanned and donated to as the user likes. Clipping, schedules and
gradient accumulation are the optimiser's: `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))`,
`optax.MultiSteps(optimizer, 4)`.

    updates      what training changes, and one update of it
    online       an update every k1 steps, in one of three ways, each in a room of its own: by_windows, drawn_windows,
                 forwards; stream: how each of them reads
    adaptive     an update per chunk, with a horizon that adapts
    evaluation   the loss of a long sequence
"""

from jax_bptt.training.adaptive import train_adaptively
from jax_bptt.training.evaluation import evaluate
from jax_bptt.training.online import train_online
from jax_bptt.training.updates import (
    Adaptive,
    DrawnStream,
    Metrics,
    Online,
    Steps,
    Stream,
    TrainState,
    Update,
    init,
    train_step,
)

__all__ = [
    "Adaptive",
    "DrawnStream",
    "Metrics",
    "Online",
    "Steps",
    "Stream",
    "TrainState",
    "Update",
    "evaluate",
    "init",
    "train_adaptively",
    "train_online",
    "train_step",
]
