"""The picture of the tables: bars."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, StrMethodFormatter

from jax_bptt.plots import COLORS


def bars(times: Mapping[str, Mapping[str, float]]) -> Figure:
    """How many times as long as ours others take: a group of bars for each task, a bar for each of the others.

    Args:
        times: by task, by name of the other, its time where ours is 1; drawn on a logarithmic scale, from 1.
    """
    figure = Figure(figsize=(max(6, 0.15 * sum(map(len, times.values()))), 4), layout="constrained")
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    names = list(dict.fromkeys(name for others in times.values() for name in others))
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        here = {place: others[name] for place, others in enumerate(times.values()) if name in others}
        ax.bar(
            [place + (i - (len(names) - 1) / 2) * width for place in here],
            [time - 1 for time in here.values()],
            width,
            bottom=1,
            color=COLORS[i % len(COLORS)],
            hatch="//" if i >= len(COLORS) else None,
            label=name,
        )
    ax.axhline(1, color="black", linewidth=1.2, label="ours")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_locator(FixedLocator([n * 2.0**k for k in range(-4, 8) for n in (1, 1.5)]))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    ax.set_xticks(range(len(times)), list(times), rotation=45, ha="right", fontsize="small")
    ax.set(ylabel="times as long as ours")
    ax.legend(frameon=False, fontsize="small", ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure
