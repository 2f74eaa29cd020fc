"""Fewer states in memory, for a little more time.

The backward pass over T steps needs what the forward pass had at each of them. With room for m steps' worth, some of it
is kept and the rest computed again. Gruslys, Munos, Danihelka, Lanctot & Graves ("Memory-efficient backpropagation
through time", 2016) choose what by a dynamic programme: of t steps, run y and keep what is there, take the rest with
one place less, then what is before with all places again. The steps run forwards, the first pass included, are

    hidden states kept:    C(t, m) = min_y  y + C(t − y, m − 1) + C(y, m),        C(t, 1) = t (t + 1) / 2
    internal states kept:  C(t, m) = min_y  y + C(t − y, m − 1) + C(y − 1, m),    C(t, 0) = ∞ but for C(0, 0) = 0

where an internal state is all that a step backwards needs: step y is not run again. With m ≥ t that is 2 t − 1
and t. They claim that for T = 1000 a twentieth of the memory takes a third more time. A step backwards takes about
twice the time of one forwards: with C steps forwards the time is (C + 2 T) / 3 T of that of standard BPTT, which keeps
everything. `save="boundaries"` keeps the first state of each of about √T windows and runs each window once more (Chen,
Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost", 2016); it is measured beside `jax.grad` of
`lax.scan`, as are the others: temporary memory of the compiled programs, arguments apart, and time.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import jax_bptt as jb
from jax_bptt import plots
from tests.evidence.page import Result, Tell

T = 1000
"""Steps."""
SLOTS = T // 20
"""Room for a twentieth of the states."""
B, I, H, O = 16, 32, 128, 32
"""Of the LSTM that is measured."""
REPEATS = 9
"""Times that each is run, in turns."""


def run(tell: Tell) -> Result:
    """The two dynamic programmes, for up to `SLOTS` places, and what is measured."""
    hidden, internal = (steps_forwards(T, SLOTS, again)[1:, T] / T for again in (True, False))  # by places, [SLOTS]
    tell(
        f"{SLOTS} of {T}: {hidden[-1]:.3f} steps forwards a step of hidden states, {internal[-1]:.3f} of internal ones"
    )
    memory, seconds = measured(tell)
    relative = {name: (memory[name] / memory["jax.grad"], seconds[name] / seconds["jax.grad"]) for name in memory}
    rows = [
        ("", "temporary memory", "beside `jax.grad`", "time", "beside `jax.grad`"),
        *(
            (name, f"{memory[name] / 2**20:.1f} MiB", f"{share:.3f}", f"{1e3 * seconds[name]:.0f} ms", f"{slower:.2f}")
            for name, (share, slower) in relative.items()
        ),
        planned_row("hidden", hidden[-1]),
        planned_row("internal", internal[-1]),
    ]
    share, slower = relative['save="boundaries"']
    more = planned(internal[-1])
    claims = {
        f"By the dynamic programme, {SLOTS} of {T} internal states take {internal[-1]:.2f} T steps forwards, which is "
        f"{more:.2f} of the time of standard BPTT: a third more, to 0.03": bool(abs(more - 4 / 3) < 0.03),
        f"{SLOTS} hidden states take {hidden[-1]:.2f} T steps forwards: no more than one more each": bool(
            0 < hidden[-1] - internal[-1] <= 1
        ),
        f'`save="boundaries"` takes {100 * share:.1f} % of the memory of `jax.grad`, less than 15 %': share < 0.15,
        f'`save="boundaries"` takes {slower:.2f} of the time of `jax.grad`, less than 1.1': slower < 1.1,
    }
    return Result(rows, draw(planned(internal), relative), claims)


def planned_row(kind: str, forwards: float) -> tuple[str, ...]:
    """Of the table."""
    steps, time = f"{forwards:.2f} T steps forwards", f"{planned(forwards):.2f}"
    return f"planned, {SLOTS} {kind} states", "", f"{SLOTS / T:.3f} of the states", steps, time


def planned(forwards: Any) -> Any:
    """The time beside that of standard BPTT, from the steps forwards for each step."""
    return (forwards + 2) / 3


def steps_forwards(steps: int, slots: int, again: bool) -> np.ndarray:
    """C(t, m) of m places and t steps, `[slots + 1, steps + 1]`; whether the step of what is kept is run again."""
    C = np.full((slots + 1, steps + 1), np.inf)
    C[:, 0] = 0
    C[1:, 1] = 1
    for t in range(2, steps + 1):
        C[1, t] = t * (t + 1) / 2
        y = np.arange(1, t + (not again))
        C[2:, t] = np.min(y + C[1:-1, t - y] + C[2:, y if again else y - 1], axis=1)
    return C


def measured(tell: Tell) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes of temporary memory, and the median of the seconds, of each way of computing the gradient of an LSTM."""
    cell, loss = jb.cells.lstm(I, H, O), jb.losses.squared_error
    keys = jax.random.split(jax.random.key(0), 3)
    xs, targets = jax.random.normal(keys[0], (T, B, I)), jax.random.normal(keys[1], (T, B, O))
    arguments = (cell.init(keys[2]), cell.initial_state(B), xs, targets)
    ways: dict[str, Callable] = {"jax.grad": jb.reference.bptt(cell, loss)}
    ways |= {f'save="{save}"': jb.bptt(cell, loss, save=save) for save in ("dots", "states", "boundaries")}
    compiled = {name: jax.jit(gradient).lower(*arguments).compile() for name, gradient in ways.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for repeat in range(REPEATS + 1):
        for name, program in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if repeat:  # the first is to warm up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name in compiled:
        tell(f"{name}: {memory[name] / 2**20:.1f} MiB, {1e3 * medians[name]:.0f} ms")
    return memory, medians


def draw(internal: np.ndarray, relative: dict[str, tuple[float, float]]) -> Figure:
    """Time against memory, both beside those of `jax.grad`."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.add_subplot()
    shares = np.arange(1, SLOTS + 1) / T
    ax.plot(shares, internal, color=plots.GREY, linewidth=1.8, label="internal states by dynamic programme, counted")
    ax.plot(shares[-1:], internal[-1:], "o", color=plots.GREY)
    ax.annotate(f"{SLOTS} states", (shares[-1], internal[-1]), (6, 6), textcoords="offset points", color=plots.GREY)
    for color, (name, (share, slower)) in zip(plots.COLORS, relative.items(), strict=False):
        ax.plot([share], [slower], "s", color=color, label=f"{name}, measured", markersize=8)
    ax.axhline(1, color="black", linestyle=":", linewidth=1.0)
    ax.set(
        xscale="log",
        xlabel="memory beside that of jax.grad",
        ylabel="time beside that of jax.grad",
        ylim=(0, 4),
        xlim=(2e-3, 2),
    )
    ax.set_title(f"T = {T}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return figure
