"""Pictures: one function each, drawn on given axes or on a figure of their own, which is returned; nothing is shown.

Needs matplotlib: `pip install 'jax_bptt[plots]'`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", GREY)


def training_curve(
    characters: Sequence[float],
    bits: Sequence[float],
    *,
    held_out: float | None = None,
    baselines: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Bits per character of the training chunks, with what they should beat.

    Args:
        characters: how many characters had been read at each update, `[N]`.
        bits: bits per character of each update's chunk, `[N]`; drawn with their running mean.
        held_out: the trained model's bits per character on held-out text, as a point at the end.
        baselines: bits per character of other models by name, as lines.
        ax: where to draw; None makes a figure.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax)
    millions = np.asarray(characters) / 1e6
    ax.plot(millions, bits, color=BLUE, alpha=0.25, linewidth=0.8)
    ax.plot(millions, running_mean(bits), color=BLUE, linewidth=1.8, label="training chunks (running mean)")
    if held_out is not None:
        ax.plot(
            millions[-1:], [held_out], "o", color=ORANGE, label=f"held out: {held_out:.2f}", clip_on=False, zorder=3
        )
    for style, (name, value) in zip(("--", "-.", ":"), (baselines or {}).items(), strict=False):
        ax.axhline(value, linestyle=style, color=GREY, linewidth=1.2, label=f"{name}: {value:.2f}")
    ax.set(xlabel="characters read (millions)", ylabel="bits per character", title="Training", ylim=(0, None))
    ax.set_xlim(0, millions[-1] if len(millions) else 1)
    ax.legend(frameon=False, fontsize="small")
    return figure


def accuracies(accuracy: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Figure:
    """The share told right, after each epoch.

    Args:
        accuracy: by name, the share after each epoch, `[N]`, from 0 to 1.
        ax: where to draw; None makes a figure.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax)
    for i, (name, shares) in enumerate(accuracy.items()):
        label = f"{name}: {100 * shares[-1]:.1f} %"
        style = "-" if i < len(COLORS) else "--"
        ax.plot(
            np.arange(1, len(shares) + 1),
            100 * np.asarray(shares),
            style,
            color=COLORS[i % len(COLORS)],
            linewidth=1.8,
            label=label,
        )
    ax.set(xlabel="epoch", ylabel="test images told right (%)", title="Accuracy by gradient", ylim=(0, 100))
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def gradient_norms(norms: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Figure:
    """‖∂L/∂h_t‖ over the steps of a chunk.

    Args:
        norms: by name, the norm at each step, `[T]`; drawn on a logarithmic scale, where 0 leaves a gap.
        ax: where to draw; None makes a figure.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax)
    for color, (name, values) in zip((PURPLE, GREEN, BLUE, ORANGE), norms.items(), strict=False):
        positive = np.where(np.asarray(values) > 0, values, np.nan)
        ax.plot(np.arange(1, len(positive) + 1), positive, color=color, linewidth=1.8, label=name)
    ax.set(xlabel="step t of the chunk", ylabel="‖∂L/∂h_t‖", title="Credit over time", yscale="log")
    ax.legend(frameon=False, fontsize="small")
    return figure


def speeds(speeds: Mapping[str, Mapping[str, float]], *, ax: Axes | None = None) -> Figure:
    """How fast others are beside ours: a group of bars for each task, a bar for each of the others.

    Args:
        speeds: by task, by name of the other, its speed where ours is 1: time of ours / time of the other.
        ax: where to draw; None makes a figure.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax, width=max(6, 0.15 * sum(map(len, speeds.values()))))
    names = list(dict.fromkeys(name for others in speeds.values() for name in others))
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        places = [place for place, others in enumerate(speeds.values()) if name in others]
        heights = [others[name] for others in speeds.values() if name in others]
        color, hatch = COLORS[i % len(COLORS)], "//" if i >= len(COLORS) else None
        ax.bar(
            [p + (i - (len(names) - 1) / 2) * width for p in places],
            heights,
            width,
            color=color,
            hatch=hatch,
            label=name,
        )
    ax.axhline(1, color="black", linewidth=1.2, label="ours")
    ax.set_xticks(range(len(speeds)), list(speeds), rotation=45, ha="right", fontsize="small")
    ax.set(ylabel="speed beside ours; lower is slower", ylim=(0, None))
    ax.legend(frameon=False, fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
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


def report(
    path: str,
    characters: Sequence[float],
    bits: Sequence[float],
    held_out: float,
    baselines: Mapping[str, float],
    norms: Mapping[str, Sequence[float]],
) -> None:
    """The command's picture, written to a file: `training_curve` beside `gradient_norms`, of the same arguments."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    training_curve(characters, bits, held_out=held_out, baselines=baselines, ax=left)
    gradient_norms(norms, ax=right)
    figure.savefig(path, dpi=150)


def file_types() -> list[str]:
    """The endings of the files that `report` can write."""
    return sorted(Figure().canvas.get_supported_filetypes())
