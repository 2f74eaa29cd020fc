"""One traced function, and of it a program of its own for each platform that it is lowered for.

What differs is how many time steps are one body of a loop, which is chosen at each loop, so that all else is traced but
once; and, where windows or what is saved of them do, the plan of a call. (What differs in a single place, `cells` and
`outer_products` choose there.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

Choice = TypeVar("Choice")


AT_ONCE = 0
"""In the place of a number of time steps: there is no loop, all steps of a window are solved at once."""


class Bodies(NamedTuple):
    """How many time steps are one body of the compiled loops; True for all of a window."""

    elsewhere: int | bool = 1
    gpu: int | bool = 1


def by_platform(run: Callable[[Choice], Any], elsewhere: Choice, gpu: Choice) -> Any:
    """`run(gpu)` where it is lowered for a GPU, else `run(elsewhere)`; traced once where they are the same."""
    if gpu == elsewhere:
        return run(elsewhere)
    of_gpu = functools.partial(run, gpu)
    return jax.lax.platform_dependent(cuda=of_gpu, rocm=of_gpu, default=functools.partial(run, elsewhere))
