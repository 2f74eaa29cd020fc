"""What a type checker must refuse, a line each: `.ci/run` fails where one of these errors is not found. Never run."""

import jax

import jax_bptt as jb
from jax_bptt.model import GradientFunction


def options(cell: jb.Cell) -> None:
    loss = jb.losses.squared_error
    jb.bptt(cell, loss, save="everything")  # pyright: ignore[reportArgumentType]
    jb.bptt(cell, loss, reduction="average")  # pyright: ignore[reportArgumentType]
    jb.bptt(cell, loss, windows=3)  # pyright: ignore[reportCallIssue]
    jb.truncated_bptt(cell, loss, 2, 4, losses="some")  # pyright: ignore[reportArgumentType]
    jb.training.evaluate(cell, loss, reduction="max")  # pyright: ignore[reportArgumentType]


def calls(cell: jb.Cell, state: jax.Array, xs: jax.Array) -> None:
    gradient: GradientFunction = jb.bptt(cell, jb.losses.squared_error)
    gradient(cell.init(jax.random.key(0)))  # pyright: ignore[reportCallIssue]
    gradient({}, state, xs, xs, masks=None)  # pyright: ignore[reportCallIssue]
    (loss, _), _ = gradient({}, state, xs, xs)
    print(loss.nonexistent)  # pyright: ignore[reportAttributeAccessIssue]


def names() -> None:
    print(jb.nonexistent)  # pyright: ignore[reportAttributeAccessIssue]
    print(jb.diagnostics.nonexistent)  # pyright: ignore[reportAttributeAccessIssue]
