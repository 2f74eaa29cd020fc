"""What is checked when a gradient function is built: its options.

Every message names the option, what was found and what was expected.
"""

import inspect
import operator
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from jax_bptt.engine.plan import Asked
from jax_bptt.engine.truncation.draws import boundaries
from jax_bptt.model import Losses, Reduction, Save


def check_choice(name: str, found: Any, literal: Any) -> None:
    """One of the strings of a `Literal`."""
    choices = get_args(literal)
    if not isinstance(found, str) or found not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: found {found!r}, expected one of {expected}")


def check_count(name: str, found: Any, at_least: int = 1) -> int:
    """An integer, known while tracing."""
    expected = "a positive integer" if at_least else "an integer of at least 0"
    try:
        count = operator.index(found)
    except TypeError as error:
        raise TypeError(f"{name}: found {describe(found)}, expected {expected}") from error
    if isinstance(found, bool):
        raise TypeError(f"{name}: found {found}, expected {expected}")
    if count < at_least:
        raise ValueError(f"{name}: found {count}, expected at least {at_least}")
    return count


def check_options(loss: Any, reduction: Any, burn_in: Any, save: Any = None, **counts: Any) -> tuple[int, Any]:
    """The options that all gradient functions share, the loss, and counts that may be None.

    Returns:
        The burn-in as an integer, and what `check_computation` returns.
    """
    if not callable(loss):
        raise TypeError(f"loss: found {describe(loss)}, expected a function loss(output, target) -> scalar")
    check_choice("reduction", reduction, Reduction)
    return check_count("burn_in", burn_in, at_least=0), check_computation(save, **counts)


def check_computation(save: Any, *, window: Any = None, parallel: Any = None, unroll: Any = None) -> Asked:
    """What is left to the plan where it is None, as the plan is asked for it."""
    if save is not None:
        check_choice("save", save, Save)
    counts = {"window": window, "parallel": parallel, "unroll": unroll}
    window, lanes, unroll = (count if count is None else check_count(name, count) for name, count in counts.items())
    return {"save": save, "window": window, "lanes": lanes, "unroll": unroll}


def check_truncation(k1: Any, k2: Any, losses: Any, context: Any = 0) -> tuple[int, int, int]:
    """k1, k2 and context as integers that go together."""
    check_choice("losses", losses, Losses)
    k1, k2, context = check_count("k1", k1), check_count("k2", k2), check_count("context", context, at_least=0)
    if losses == "newest" and k2 < k1:
        raise ValueError(
            f"k2: found {k2}, expected at least k1 = {k1}, since k1 - k2 = {k1 - k2} of the {k1} new losses of every "
            f'window would be dropped; use k1 = {k2}, or losses="all" to drop them'
        )
    if context % k1:
        raise ValueError(f"context: found {context}, expected a multiple of k1 = {k1}, so that windows meet")
    return k1, k2, context


def check_cut(cut: Any) -> tuple[float, ...] | float:
    """A probability of at least 0 and less than 1, or a sequence of such, known while tracing."""
    expected = "a probability of at least 0 and less than 1, or one for each boundary"
    try:
        numbers = np.asarray(cut, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"cut: found {describe(cut)}, expected {expected}") from error
    if isinstance(cut, bool | str) or numbers.ndim > 1:
        raise TypeError(f"cut: found {describe(cut)}, expected {expected}")
    wrong = numbers[~((numbers >= 0) & (numbers < 1))]
    if wrong.size:
        raise ValueError(f"cut: found {wrong.flat[0]:g}, expected {expected}; with 1 no credit would be left to scale")
    return tuple(numbers.tolist()) if numbers.ndim else float(numbers)


def check_cuts(cut: tuple[float, ...] | float, steps: Any, k1: int, burn_in: int) -> tuple[float, ...]:
    """The probability of a cut at each boundary of so many steps."""
    if not isinstance(steps, int):
        raise ValueError(f"length: found {steps} time steps, expected a number, since k1 cuts them into windows")
    number = len(boundaries(steps, k1, burn_in))
    if not isinstance(cut, tuple):
        return (cut,) * number
    if len(cut) != number:
        raise ValueError(
            f"cut: found {len(cut)} probabilities, expected {number}, one for each boundary between windows of "
            f"k1 = {k1} of {steps - burn_in} steps"
        )
    return cut


def check_growing(horizons: Any, at_least: int) -> list[int]:
    """So many growing horizons, at least."""
    expected = f"a sequence of {at_least} or more growing numbers of steps"
    if isinstance(horizons, str) or not isinstance(horizons, Sequence | np.ndarray):
        raise TypeError(f"horizons: found {describe(horizons)}, expected {expected}")
    many = [check_count("horizons", horizon) for horizon in horizons]
    if len(many) < at_least or many != sorted(set(many)):
        raise ValueError(f"horizons: found {many}, expected {expected}")
    return many


def check_tolerance(tolerance: Any) -> float:
    """A relative bias that is allowed."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float | np.floating | np.integer):
        raise TypeError(f"tolerance: found {describe(tolerance)}, expected a number between 0 and 1")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: found {tolerance}, expected a number between 0 and 1")
    return float(tolerance)


def check_horizons(horizons: Any, probabilities: Any, k1: int, losses: Losses) -> tuple[list[int], list[float]]:
    """Growing horizons, and of each the probability with which it is drawn."""
    many = check_growing(horizons, 1)
    if losses == "newest" and many[0] < k1:
        raise ValueError(f"horizons: found {many}, expected at least k1 = {k1}, or new losses would be dropped")
    try:
        shares = np.asarray(probabilities, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"probabilities: found {describe(probabilities)}, expected one for each horizon") from error
    if shares.shape != (len(many),):
        raise ValueError(f"probabilities: found shape {shares.shape}, expected ({len(many)},), one for each horizon")
    if not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"probabilities: found {shares.tolist()}, expected positive numbers with a sum of 1")
    return many, (shares / shares.sum()).tolist()


def check_if_truncated(k1: Any, k2: Any, losses: Losses = "newest") -> tuple[int, int, Losses] | None:
    """k1, k2 and losses where both are given; None, for exact BPTT, where neither is."""
    if (k1 is None) != (k2 is None):
        raise ValueError(f"k1, k2: found {k1} and {k2}, expected both, for truncated BPTT, or neither, for exact")
    return None if k1 is None else (*check_truncation(k1, k2, losses)[:2], losses)


def check_argnums(argnums: Any) -> tuple[int, ...]:
    """One of 0, 1 and 2, or several; returned as a tuple."""
    several = argnums if isinstance(argnums, tuple | list) else (argnums,)
    try:
        several = [check_count("argnums", n, at_least=0) for n in several]
    except TypeError as error:
        raise TypeError(f"argnums: found {argnums!r}, expected an integer or a sequence of integers") from error
    except ValueError:
        several = []
    if not several or any(n not in (0, 1, 2) for n in several) or len(set(several)) < len(several):
        raise ValueError(f"argnums: found {argnums!r}, expected 0 (params), 1 (state), 2 (xs), or several of them")
    return tuple(several)


def describe(value: Any) -> str:
    """What was found, for a message."""
    if inspect.isfunction(value):
        return f"the function {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    return f"{text if len(text) < 80 else 'a value'} of type {type(value).__name__}"
