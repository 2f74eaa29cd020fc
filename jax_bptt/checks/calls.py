"""Functions of a checked call, made functions of the arguments that users give: decorators.

`run(call)` becomes `run(params, state, xs, targets, …)`: what every gradient function over sequences is.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from jax_bptt.checks.arguments import Arguments, check_call
from jax_bptt.checks.trees import check_key
from jax_bptt.engine.call import Call
from jax_bptt.model import Loss, OverDrawnSequences, OverSequences, Step

Result = TypeVar("Result")


def over_sequences(
    step: Step, loss: Loss | None, *, argnums: Sequence[int] = (), burn_in: int = 0, context: int = 0
) -> Callable[[Callable[[Call], Result]], OverSequences[Result]]:
    """Decorates a function of a checked call: makes one of its arguments of it.

    Args:
        argnums: which of params, state and xs are to be differentiable.
        burn_in, context: the steps that are to be left after them.
    """

    def of_call(run: Callable[[Call], Result]) -> OverSequences[Result]:
        def called(
            params, state, xs=None, targets=None, mask=None, reset=None, reset_state=None, length=None
        ) -> Result:
            arguments = Arguments(params, state, xs, targets, mask, reset, reset_state, length)
            return run(check_call(step, loss, arguments, argnums=argnums, burn_in=burn_in, context=context))

        called.__name__ = called.__qualname__ = run.__name__  # for profilers, compiled programs and Python's messages
        return called

    return of_call


def over_drawn_sequences(
    step: Step, loss: Loss, *, argnums: Sequence[int], burn_in: int, context: int
) -> Callable[[Callable[[Call, jax.Array], Result]], OverDrawnSequences[Result]]:
    """As `over_sequences`, of a function that draws something, too, from the call's `key`."""

    def of_call(run: Callable[[Call, jax.Array], Result]) -> OverDrawnSequences[Result]:
        def called(
            params, state, xs=None, targets=None, mask=None, reset=None, reset_state=None, length=None, *, key=None
        ) -> Result:
            def drawn(call: Call) -> Result:
                return run(call, check_key(key))

            of_sequences = over_sequences(step, loss, argnums=argnums, burn_in=burn_in, context=context)(drawn)
            return of_sequences(params, state, xs, targets, mask, reset, reset_state, length)

        called.__name__ = called.__qualname__ = run.__name__
        return called

    return of_call
