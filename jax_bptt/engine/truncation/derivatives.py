"""The derivatives of a function of a call, where they are those of another that returns the same.

A truncated gradient shares what its windows have in common, and where it is cut shows in what is handed back alone:
differentiated as it stands, as a function of the params, it would not be cut.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jax_bptt.engine.call import Call, arrays_of, close_loss, close_step
from jax_bptt.engine.leaves import Leaves
from jax_bptt.model import PyTree


def derived_as(other: Callable[..., PyTree], function: Callable[..., PyTree], call: Call, *drawn: jax.Array) -> PyTree:
    """`function(call, *drawn)`, whose derivatives are those of `other(call, *drawn)`, which returns the same."""
    (step, of_step), (loss, of_loss), (given, sizes) = close_step(call), close_loss(call), arrays_of(call)

    def called(run: Callable[..., PyTree], given: PyTree, of_step: Leaves, of_loss: Leaves, drawn: Any) -> PyTree:
        closed = {"step": functools.partial(step, of_step), "loss": functools.partial(loss, of_loss)}
        return run(sizes._replace(**closed, **given), *drawn)

    @jax.custom_jvp
    def run(*arguments: Any) -> PyTree:
        return called(function, *arguments)

    @run.defjvp
    def push(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        return run(*primals), jax.jvp(functools.partial(called, other), primals, tangents)[1]

    return run(given, of_step, of_loss, drawn)
