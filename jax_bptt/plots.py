"""Pictures: one function each, drawn on the axes `ax` or, where that is None, on a figure of their own.

Each returns the figure; nothing is shown.

Needs matplotlib: `pip install 'jax_bptt[plots]'`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from jax_bptt.checks.options import check_if_truncated, describe
from jax_bptt.diagnostics import TruncationBias
from jax_bptt.engine.schedule import Grid
from jax_bptt.model import Losses

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", GREY)


def training_curve(
    characters: Sequence[float],
    bits: Sequence[float],
    *,
    held_out: tuple[Sequence[float], Sequence[float]] | None = None,
    baselines: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Bits per character of the training chunks, with what they should beat.

    Args:
        characters: how many characters had been read at each update, `[N]`.
        bits: bits per character of each update's chunk, `[N]`; drawn with their running mean.
        held_out: how many characters had been read at some of the updates, and bits per character of held-out text
            then.
        baselines: bits per character of other models by name, as lines.
    """
    figure, ax = _axes(ax)
    millions = np.asarray(characters) / 1e6
    ax.plot(millions, bits, color=BLUE, alpha=0.25, linewidth=0.8)
    ax.plot(millions, running_mean(bits), color=BLUE, linewidth=1.8, label="training chunks (running mean)")
    if held_out is not None:
        look = {"color": ORANGE, "marker": "o", "markersize": 4, "linewidth": 1.2, "clip_on": False, "zorder": 3}
        ax.plot(np.asarray(held_out[0]) / 1e6, held_out[1], **look, label=f"held out: {held_out[1][-1]:.2f}")
    for style, (name, value) in zip(("--", "-.", ":"), (baselines or {}).items(), strict=False):
        ax.axhline(value, linestyle=style, color=GREY, linewidth=1.2, label=f"{name}: {value:.2f}")
    ax.set(xlabel="characters read (millions)", ylabel="bits per character", title="Training", ylim=(0, None))
    ax.set_xlim(0, millions[-1] if len(millions) else 1)
    ax.legend(frameon=False, fontsize="small")
    return figure


def horizons(characters: Sequence[float], steps: Sequence[int], *, ax: Axes | None = None) -> Figure:
    """The horizon with which each update was made, where it adapts.

    Args:
        characters: how many characters had been read at each update, `[N]`.
        steps: the horizons, `[N]`, drawn on a logarithmic scale.
    """
    figure, ax = _axes(ax)
    ax.step(np.asarray(characters) / 1e6, steps, where="pre", color=GREEN, linewidth=1.8)
    ax.set(xlabel="characters read (millions)", ylabel="horizon $k_2$ (steps)", title="Horizon")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if len(steps):
        ax.set(xlim=(0, characters[-1] / 1e6), ylim=(min(steps) / 1.5, max(steps) * 1.5))
    return figure


def accuracies(accuracy: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Figure:
    """The share told right, after each epoch.

    Args:
        accuracy: by name, the share after each epoch, `[N]`, from 0 to 1.
    """
    figure, ax = _axes(ax)
    for i, (name, shares) in enumerate(accuracy.items()):
        label = f"{name}: {100 * shares[-1]:.1f} %"
        ax.plot(np.arange(1, len(shares) + 1), 100 * np.asarray(shares), **_line(i), label=label)
    ax.set(xlabel="epoch", ylabel="test images told right (%)", title="Accuracy by gradient", ylim=(0, 100))
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def gradient_norms(norms: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Figure:
    """‖∂L/∂h_t‖ over the steps of a chunk.

    Args:
        norms: by name, the norm at each step, `[T]`; drawn on a logarithmic scale, where 0 leaves a gap.
    """
    figure, ax = _axes(ax)
    for i, (name, values) in enumerate(norms.items()):
        ax.plot(np.arange(1, len(values) + 1), _positive(np.asarray(values)), **_line(i), label=name)
    ax.set(xlabel="step $t$ of the chunk", ylabel=f"‖{_partial('L', 'h_t')}‖", title="Credit over time", yscale="log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize="small")
    return figure


def credit_matrix(
    matrix: Any,
    *,
    k1: int | None = None,
    k2: int | None = None,
    losses: Losses = "newest",
    decades: float = 6,
    ax: Axes | None = None,
) -> Figure:
    """‖∂ℓ_s/∂h_t‖ of every loss s and state t, with the windows of truncation drawn over it.

    Args:
        matrix: `[T, T]`, as `jax_bptt.diagnostics.credit_matrix` returns it; on a logarithmic scale, where 0 stays
            blank.
        k1, k2, losses: of the truncation whose windows are drawn, each a frame around the losses that it has and the
            states that it hands their credit to; none where k1 and k2 are None.
        decades: how many powers of ten below the largest entry the scale goes; what is less has the colour of its end.

    Raises:
        ValueError: if the matrix is not of `[T, T]`, or only one of k1 and k2 is given.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: found shape {matrix.shape}, expected [T, T]")
    truncation = check_if_truncated(k1, k2, losses)
    figure, ax = _axes(ax, width=5)
    steps, largest = len(matrix), np.nanmax(matrix, initial=0) or 1.0
    shown = np.where(matrix > 0, np.maximum(matrix, largest * 10.0**-decades), np.nan)
    low, high = 0.5, steps + 0.5
    scale = LogNorm(largest * 10.0**-decades, largest)
    image = ax.imshow(shown, norm=scale, cmap="viridis", extent=(low, high, high, low), interpolation="nearest")
    figure.colorbar(image, ax=ax, label=f"‖{_partial('ℓ_s', 'h_t')}‖", shrink=0.85)
    if truncation is not None:
        for start, first, end in Grid(steps, *truncation).windows():
            end = min(end, steps)
            if first < end:
                corners = _staircase(start, first, end)
                ax.add_patch(Polygon(corners, fill=False, edgecolor=ORANGE, linewidth=1.5, clip_on=False))
    ax.set(
        xlabel="state $t$", ylabel="loss $s$", title="Credit of losses to states", xlim=(low, high), ylim=(high, low)
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _staircase(start: int, first: int, end: int) -> np.ndarray:
    """The outline of the states `start + 1 … s` of the losses `s = first + 1 … end`."""
    corners = [(start + 0.5, end + 0.5), (start + 0.5, first + 0.5)]
    for s in range(first + 1, end + 1):
        corners += [(s + 0.5, s - 0.5), (s + 0.5, s + 0.5)]
    return np.asarray(corners)


def lag_profile(profiles: Any, *, k2: int | None = None, ax: Axes | None = None) -> Figure:
    """The credit of a loss to the states before it, by how many steps it travels back.

    Args:
        profiles: `[K + 1]`, as `jax_bptt.diagnostics.lag_profile` returns it, or several by name; drawn on a
            logarithmic scale, where 0 leaves a gap.
        k2: a horizon to mark, such as `suggest_k2` returns.

    Raises:
        ValueError: if a profile is not of `[K + 1]`.
    """
    figure, ax = _axes(ax)
    named = profiles if isinstance(profiles, Mapping) else {"": profiles}
    for i, (name, values) in enumerate(named.items()):
        if np.ndim(values) != 1:
            raise ValueError(f"profiles: found shape {np.shape(values)}, expected [K + 1], or several such by name")
        ax.plot(np.arange(len(values)), _positive(np.asarray(values)), **_line(i), label=name)
    if k2 is not None:
        ax.axvline(k2, color="black", linestyle=":", linewidth=1.2, label=f"horizon of {k2} steps")
    ax.set(
        xlabel="lag $k$ (steps)",
        ylabel=f"mean of ‖{_partial('ℓ_s', 'h_{s-k}')}‖",
        title="How far credit travels",
        yscale="log",
    )
    if len(named) > 1 or k2 is not None or "" not in named:
        ax.legend(frameon=False, fontsize="small")
    return figure


def truncation_bias(
    bias: TruncationBias, *, parameters: bool = True, tolerance: float | None = None, ax: Axes | None = None
) -> Figure:
    """The relative error of truncated gradients against their horizon.

    Args:
        bias: as `jax_bptt.diagnostics.truncation_bias` returns it: all params in black, with twice the standard error,
            and each of those that it tells of.
        parameters: whether each param gets a line.
        tolerance: a relative error to mark.

    Raises:
        TypeError: if `bias` is something else.
    """
    if not isinstance(bias, TruncationBias):
        raise TypeError(f"bias: found {describe(bias)}, expected a TruncationBias, as truncation_bias returns it")
    figure, ax = _axes(ax)
    k2, order = np.asarray(bias.k2), np.argsort(bias.k2, kind="stable")
    if parameters:
        for i, (name, errors) in enumerate(bias.relative_error_of.items()):
            ax.plot(k2[order], _positive(np.asarray(errors)[order]), **_line(i), label=name, marker="o", markersize=3)
    error, deviation = np.asarray(bias.relative_error)[order], np.nan_to_num(np.asarray(bias.standard_error)[order])
    low = np.minimum(2 * deviation, 0.9 * error)  # a logarithmic scale has no place for less than nothing
    ax.errorbar(
        k2[order], _positive(error), [low, 2 * deviation], color="black", linewidth=2.2, capsize=3, label="all params"
    )
    if tolerance is not None:
        ax.axhline(tolerance, color="black", linestyle=":", linewidth=1.2, label=f"tolerance {tolerance:g}")
    ax.set(
        xlabel="horizon $k_2$ (steps)",
        ylabel=r"$‖\hat{g} - g‖ \;/\; ‖g‖$",
        title="Error of the truncated gradient",
        yscale="log",
    )
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.legend(frameon=False, fontsize="small")
    return figure


def running_mean(values: Sequence[float], share: float = 0.02) -> np.ndarray:
    """The mean over the last `share` of all values, or what there is of it."""
    width = max(1, round(share * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _axes(ax: Axes | None, width: float = 6) -> tuple[Any, Axes]:
    if ax is None:
        figure = Figure(figsize=(width, 4), layout="constrained")
        ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax.figure, ax


def _partial(of: str, by: str) -> str:
    """A partial derivative, as matplotlib typesets it."""
    return rf"$\partial {of}\,/\,\partial {by}$".replace("ℓ", r"\ell")


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _line(i: int) -> dict[str, Any]:
    """The look of the i-th of several lines."""
    style = ("-", "--", "-.", ":")[i // len(COLORS) % 4]
    return {"color": COLORS[i % len(COLORS)], "linestyle": style, "linewidth": 1.8}
