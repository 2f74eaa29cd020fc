"""What the command prints: tables, text and progress, live on a terminal and as plain lines elsewhere.

Needs rich: `pip install 'jax_bptt[cli]'`.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

#: How many lines tell the progress where there is no terminal.
PLAIN_LINES = 10

Advance = Callable[[int, float, int], None]
"""`advance(step, figure, read)`: the number of steps made, the recent figure, how much was read in this run."""


class Told(NamedTuple):
    """What the progress tells: a figure, and of what so much is read a second; each in words, and short."""

    figure: tuple[str, str]
    unit: tuple[str, str]


CHARACTERS = Told(("bits per character", "bits/char"), ("characters", "chars"))
IMAGES = Told(("% of test images told right", "% right"), ("images", "images"))


def console() -> Console:
    """The console that writes to stdout, never with colours or control characters where that is no terminal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text may hold what the terminal's encoding does not
    terminal = sys.stdout.isatty()
    return Console(highlight=False, markup=False, soft_wrap=True, force_terminal=terminal, no_color=not terminal)


def print_table(to: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    made = Table()
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    to.print(Text(title, style="bold"))
    to.print(made)


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
def progress(to: Console, steps: int, told: Told, before: int = 0) -> Iterator[Advance]:
    """The progress of training: a live bar on a terminal, `PLAIN_LINES` lines elsewhere.

    Args:
        to: the console.
        steps: how many steps there will be.
        told: what is told of them.
        before: how many there were in an earlier run.
    """
    started = time.perf_counter()

    def speed(read: int) -> float:
        return read / max(time.perf_counter() - started, 1e-9)

    if to.is_terminal:
        with Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            _FieldColumn("figure", f"{{:.3f}} {told.figure[1]}"),
            _FieldColumn("speed", f"{{:,.0f}} {told.unit[1]}/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=to,
            expand=True,
        ) as bar:
            task = bar.add_task("training", total=steps, completed=before)
            yield lambda step, figure, read: bar.update(task, completed=step, figure=figure, speed=speed(read))
        return

    shown = {max(1, round(steps * (i + 1) / PLAIN_LINES)) for i in range(PLAIN_LINES)}

    def advance(step: int, figure: float, read: int) -> None:
        if step in shown:
            left = (time.perf_counter() - started) / (step - before) * (steps - step)
            to.print(
                f"step {step:>{len(str(steps))}} of {steps}: {figure:.3f} {told.figure[0]}, "
                f"{speed(read):,.0f} {told.unit[0]}/s, {left:.0f} s left"
            )

    yield advance


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C noted, the first time, instead of raised: where it is raised, it can get lost inside a callback.

    Yields:
        A function that tells whether it was pressed.
    """
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


class _FieldColumn(ProgressColumn):
    """A figure of the task, once it has it."""

    def __init__(self, field: str, template: str):
        super().__init__()
        self._field, self._template = field, template

    def render(self, task: Task) -> Text:
        value = task.fields.get(self._field)
        return Text("" if value is None else self._template.format(value))
