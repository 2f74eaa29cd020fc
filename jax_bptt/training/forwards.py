"""Online training forwards in time: the gradient is carried on with the state, and no window is kept."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_bptt.checks.options import describe
from jax_bptt.checks.trees import arrays
from jax_bptt.forward_mode.carried import Carry
from jax_bptt.model import ForwardMode, PyTree
from jax_bptt.training.stream import scan_updates
from jax_bptt.training.updates import Metrics, Online, Steps, TrainState, check_train_state, init, train_step


def update_forwards(
    pair: ForwardMode[Any], optimizer: optax.GradientTransformation, k1: int, skip_nonfinite: bool
) -> Online:
    """Online training with a gradient that is carried forwards in time."""
    update_once = train_step(pair.gradient, optimizer, skip_nonfinite=skip_nonfinite)

    def begin(
        params: PyTree, state: PyTree, xs: PyTree = None, targets: PyTree = None, key: jax.Array | None = None
    ) -> TrainState:
        takes_key = "key" in inspect.signature(pair.init).parameters
        if key is not None and not takes_key:
            raise ValueError(f"key: found {describe(key)}, expected None: nothing is drawn by this gradient")
        drawn_from = {"key": key} if takes_key else {}
        return init(params, optimizer, pair.init(params, state, xs, **drawn_from))

    def update(
        train_state: TrainState, xs: PyTree, targets: PyTree, *, mask: Any = None, reset: Any = None
    ) -> tuple[TrainState, Metrics]:
        check_train_state(train_state)
        given = {"xs": xs, "targets": targets, "mask": mask, "reset": reset}
        steps = Steps(**{name: arrays(name, tree) for name, tree in given.items()})
        length = next((len(leaf) for leaf in jax.tree.leaves(steps) if leaf.ndim), 0)
        if not length or length % k1 or any(leaf.shape[:1] != (length,) for leaf in jax.tree.leaves(steps)):
            shapes = {name: jax.tree.map(jnp.shape, tree) for name, tree in steps._asdict().items() if tree is not None}
            raise ValueError(f"xs: found {shapes}, expected [T, …], of a multiple T of k1 = {k1}, one update each")
        if isinstance(train_state.carry, Carry) and train_state.carry.influence is None:
            laid_out = pair.init(train_state.params, train_state.carry.state, steps.xs)
            train_state = train_state._replace(carry=laid_out)

        def window(old: TrainState, new: Steps) -> tuple[TrainState, Metrics]:
            return update_once(old, new.xs, new.targets, mask=new.mask, reset=new.reset)

        return scan_updates(window, train_state, steps, k1)

    return Online(begin, update)
