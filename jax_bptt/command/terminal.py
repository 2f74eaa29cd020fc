"""What the command prints: tables, text and progress, live on a terminal and as plain lines elsewhere."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from jax_bptt.command.gradient_check import Comparison

#: How many lines tell the progress of so many steps in all, where there is no terminal.
PLAIN_LINES = 10

#: In fewer columns a line of progress leaves out how fast it goes, and the bar.
NARROW = 80

Advance = Callable[[int, float, int], None]
"""`advance(step, figure, read)`: the number of steps made, the recent figure, how much was read in this run."""


class Told(NamedTuple):
    """What the progress tells: a figure, and of what so much is read a second; each in words, and short."""

    step: str
    figure: tuple[str, str]
    unit: tuple[str, str]


CHARACTERS = Told("step", ("bits per character", "bits/char"), ("characters", "chars"))
IMAGES = Told("epoch", ("% of test images told right", "% right"), ("images", "images"))


def console() -> Console:
    """The console that writes to stdout: as wide as a terminal is, and plain lines, however long, where there is none.

    NO_COLOR in the environment leaves colours out.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may hold what the terminal's encoding does not
    terminal = sys.stdout.isatty()
    no_color = None if terminal else True
    return Console(highlight=False, markup=False, force_terminal=terminal, no_color=no_color, soft_wrap=not terminal)


def print_table(to: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    made = Table()
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    to.print(Text(title, style="bold"))
    to.print(made)


def print_comparison(to: Console, title: str, comparison: Comparison, devices: int) -> None:
    """Print the difference of two gradients and what they cost, the other that of `jax.grad` on one device.

    Args:
        devices: of how many the first is; what each of them takes is told in sum.
    """
    rows = [(name, f"{difference:.1e}") for name, difference in comparison.differences.items()]
    print_table(to, title, ("parameter", "largest relative difference"), rows)
    ours, other = comparison.cost, comparison.other
    of_all = devices * ours.temporary_bytes
    on, on_one = (f" on {devices} devices", " on one") if devices > 1 else ("", "")
    rows = [
        (f"jax_bptt{on}", seconds(ours.seconds), mebibytes(of_all)),
        (f"jax.grad{on_one}", seconds(other.seconds), mebibytes(other.temporary_bytes)),
        ("ratio", f"{ours.seconds / other.seconds:.2f}", f"{of_all / max(1, other.temporary_bytes):.2f}"),
    ]
    print_table(to, "Cost of that gradient, compiled", ("", "time (median of 5)", "temporary memory"), rows)


def printable(text: str) -> str:
    """The text with everything but line breaks and printable characters replaced."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.1f} s"


def mebibytes(value: float) -> str:
    """A number of bytes in MiB."""
    return f"{value / 2**20:.2f} MiB"


@contextmanager
def progress(to: Console, steps: int, told: Told, before: int = 0, name: str = "training") -> Iterator[Advance]:
    """The progress of so many steps, `before` of them in an earlier run: a live bar, or `PLAIN_LINES` lines."""
    started = time.perf_counter()

    def speed(read: int) -> float:
        return read / max(time.perf_counter() - started, 1e-9)

    if to.is_terminal:
        fields = [TextColumn(f"{{task.fields[{name}]}}", table_column=Column()) for name in ("figure", "speed")]
        count, left = TextColumn("{task.completed}/{task.total}"), TextColumn("left")
        columns = [TextColumn(name), BarColumn(bar_width=None), count, *fields, left, TimeRemainingColumn()]
        if to.width < NARROW:
            to.print(f"{name}:")
            columns = [count, fields[0], TimeRemainingColumn()]
        with Progress(*columns, console=to, expand=True) as bar:
            task = bar.add_task(name, total=steps, completed=before, figure="", speed="")

            def update(step: int, figure: float, read: int) -> None:
                in_words = f"{figure:.3f} {told.figure[1]}", f"{speed(read):,.0f} {told.unit[1]}/s"
                bar.update(task, completed=step, figure=in_words[0], speed=in_words[1])

            yield update
        return

    shown = {max(1, round(steps * (i + 1) / PLAIN_LINES)) for i in range(PLAIN_LINES)}

    def advance(step: int, figure: float, read: int) -> None:
        if step in shown:
            left = (time.perf_counter() - started) / (step - before) * (steps - step)
            to.print(
                f"{name}: {told.step} {step:>{len(str(steps))}} of {steps}: {figure:.3f} {told.figure[0]}, "
                f"{speed(read):,.0f} {told.unit[0]}/s, {left:.0f} s left"
            )

    yield advance


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, once, instead of an error, which can get lost inside a callback."""
    pressed = False

    def note(signal_number, frame):
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
