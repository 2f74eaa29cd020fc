"""The command: train a character-level language model with BPTT on real text, and report how good it became.

text → check of the gradient on this model and text → training → held-out bits per character, sample, picture
"""

import argparse
import importlib.metadata
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jax_bptt as jb
from jax_bptt import text
from jax_bptt.characters import LOSS, Gradient, Task, credit, distance, held_out_bits, language_model, sample, train
from jax_bptt.compare import compare

DEFAULT_K1 = 32
CELLS = {"elman": jb.cells.elman, "gru": jb.cells.gru, "lstm": jb.cells.lstm}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit status: 0, 1 where an extra is not installed, 130 where it was interrupted before it had learnt
        anything. Wrong arguments exit with 2.
    """
    parser = _parser()
    arguments = parser.parse_args(argv, argparse.Namespace(text=None, k1=None, k2=None, exact=False))
    try:
        from jax_bptt import plots, terminal
    except ImportError as error:
        print(f"jax-bptt: {error}; the command needs pip install 'jax_bptt[cli]'", file=sys.stderr)
        return 1
    task = _prepare(parser, arguments, plots.file_types())
    try:
        _run(task, arguments, terminal, plots)
    except KeyboardInterrupt:
        print("\njax-bptt: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(task: Task, arguments: argparse.Namespace, terminal: Any, plots: Any) -> None:
    out = terminal.console()
    started = time.perf_counter()
    key_init, key_sample = jax.random.split(jax.random.key(arguments.seed))
    params = task.model.init(key_init)
    chunks, chunk, batch = task.inputs.shape
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    name = arguments.text or "the Python language reference"
    out.print(
        f"text:  {name}, {len(task.corpus.train):,} characters to train on, {len(task.corpus.held_out):,} held out, "
        f"{len(task.corpus.vocabulary)} kinds"
    )
    out.print(
        f"model: {arguments.cell}, {arguments.layers} x {arguments.hidden} units, {size:,} parameters; "
        f"chunks of {chunk} steps, {batch} streams, {chunks} chunks a pass\n"
    )
    _check_gradient(task, arguments, params, out, terminal)

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, arguments.lr, arguments.steps // 20, arguments.steps, arguments.lr / 50
    )
    optimizer = optax.chain(optax.clip_by_global_norm(arguments.clip), optax.adam(schedule))
    with terminal.progress(out, arguments.steps) as advance, terminal.interruptible() as interrupted:
        gradient, _ = _gradients(task, arguments)
        training = train(task, gradient, params, optimizer, arguments.steps, advance, interrupted)
    if len(training.bits) < arguments.steps:
        out.print(f"interrupted after {len(training.bits)} of {arguments.steps} steps: this is what was learnt so far")

    counted = {
        "unigram": text.unigram_bits(task.corpus),
        "bigram": text.bigram_bits(task.corpus),
        "interpolated trigram": text.trigram_bits(task.corpus),
    }
    learnt = held_out_bits(task.model, training.params, task.corpus.held_out)
    rows = [(name, f"{bits:.3f}") for name, bits in [*counted.items(), (f"this {arguments.cell}", learnt)]]
    out.print()
    terminal.print_table(out, "Held-out text", ("model", "bits per character"), rows)
    if arguments.sample:
        prompt = jnp.asarray(task.corpus.held_out[: min(chunk, len(task.corpus.held_out))])
        drawn = sample(task.model, training.params, key_sample, prompt, arguments.sample, arguments.temperature)
        out.print(f"\nSample at temperature {arguments.temperature:g}:\n")
        out.print(terminal.printable(text.decode(task.corpus.vocabulary, np.asarray(drawn).tolist())))
    plots.report(
        arguments.out,
        [(i + 1) * chunk * batch for i in range(len(training.bits))],
        training.bits,
        learnt,
        counted,
        {"before training": credit(task, params), "after training": credit(task, training.params)},
    )
    out.print(f"\npicture: {arguments.out}\n{time.perf_counter() - started:.0f} s in all")


def _gradients(task: Task, arguments: argparse.Namespace) -> tuple[Gradient, Gradient]:
    """The gradient that is trained with, and the same by `jax.grad`."""
    model, k1, k2 = task.model, arguments.k1, arguments.k2
    if arguments.exact:
        return jb.bptt(model, LOSS, reduction="mean"), jb.reference.bptt(model, LOSS, reduction="mean")
    return (
        jb.truncated_bptt(model, LOSS, k1, k2, reduction="mean"),
        jb.reference.truncated_bptt(model, LOSS, k1, k2, reduction="mean"),
    )


def _check_gradient(task: Task, arguments: argparse.Namespace, params: Any, out: Any, terminal: Any) -> None:
    """Print the hand-rolled gradient beside that of `jax.grad`, and the truncated beside the exact one."""
    gradient, reference = _gradients(task, arguments)
    chunk, batch = task.inputs.shape[1:]
    steps = chunk if arguments.exact else min(chunk, arguments.k2 + 7 * arguments.k1)
    state = task.model.initial_state(batch)
    comparison = compare(
        lambda *call: gradient(*call)[1],
        lambda *call: reference(*call)[1],
        *(params, state, task.inputs[0, :steps], task.targets[0, :steps]),
    )
    kind = "exact" if arguments.exact else f"truncated, k1 = {arguments.k1}, k2 = {arguments.k2}"
    rows = [(name, f"{difference:.1e}") for name, difference in comparison.differences.items()]
    title = f"Gradient of {steps} steps ({kind}), hand-rolled beside jax.grad"
    terminal.print_table(out, title, ("parameter", "largest relative difference"), rows)
    ours, other = comparison.cost, comparison.other
    rows = [
        ("jax_bptt", terminal.seconds(ours.seconds), terminal.mebibytes(ours.temporary_bytes)),
        ("jax.grad", terminal.seconds(other.seconds), terminal.mebibytes(other.temporary_bytes)),
        ("ratio", f"{ours.seconds / other.seconds:.2f}", f"{ours.temporary_bytes / other.temporary_bytes:.2f}"),
    ]
    terminal.print_table(out, "Cost of that gradient, compiled", ("", "time (median of 5)", "temporary memory"), rows)
    if not arguments.exact:
        far = distance(task, params, gradient, jb.bptt(task.model, LOSS, reduction="mean"))
        out.print(
            f"truncated beside exact gradient of a chunk, before training: cosine {far.cosine:.4f}, "
            f"{far.norm:.4f} of its norm, difference {far.difference:.1e} of its norm"
        )
    out.print()


def _prepare(parser: argparse.ArgumentParser, arguments: argparse.Namespace, file_types: Sequence[str]) -> Task:
    """Read the text and make the model, or exit with what is wrong."""
    out = Path(arguments.out)
    if out.suffix.lower().lstrip(".") not in file_types:
        parser.error(f"--out: found {out}, expected a name that ends in one of .{', .'.join(file_types)}")
    if out.is_dir():
        parser.error(f"--out: found the directory {out}, expected a file name")
    if not out.parent.is_dir():
        parser.error(f"--out: found no directory {out.parent} to write in")
    if arguments.exact and (arguments.k1 or arguments.k2):
        parser.error("--exact: found with --k1 or --k2, expected one or the other")
    arguments.k1 = arguments.k1 or min(DEFAULT_K1, arguments.k2 or DEFAULT_K1)
    arguments.k2 = arguments.k2 or arguments.k1
    if arguments.k2 < arguments.k1:
        parser.error(f"--k2: found {arguments.k2}, expected at least --k1, which is {arguments.k1}")
    try:  # in a way that leaves nothing behind
        if out.exists():
            out.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        parser.error(f"--out: found {out}, which cannot be written: {error.strerror}")
    try:
        whole = text.python_reference() if arguments.text is None else text.read(arguments.text)
    except OSError as error:
        parser.error(f"--text: cannot read {arguments.text}: {error.strerror}")
    except ValueError as error:
        parser.error(f"--text: {error}")
    if not whole:
        parser.error(f"--text: found {arguments.text} empty, expected some text")
    corpus = text.corpus(whole)
    try:
        inputs, targets = text.chunks(corpus.train, arguments.chunk, arguments.batch)
    except ValueError as error:
        parser.error(f"--{error}; a smaller --chunk or --batch needs less")
    if len(corpus.held_out) < 3:
        parser.error(f"--text: found {len(corpus.held_out)} characters to hold out, a tenth of it, expected at least 3")
    sizes = [arguments.embedding, *[arguments.hidden] * arguments.layers]
    outputs = [None] * (arguments.layers - 1) + [len(corpus.vocabulary)]
    layers = [
        CELLS[arguments.cell](i, h, o, output_bias=True)
        for (i, h), o in zip(itertools.pairwise(sizes), outputs, strict=True)
    ]
    cell = layers[0] if len(layers) == 1 else jb.cells.stack(layers)
    return Task(corpus, inputs, targets, language_model(cell, len(corpus.vocabulary), arguments.embedding))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jax-bptt",
        description="Train a character-level language model with backpropagation through time, on real text, and "
        "report how good it became. First the gradient is checked against jax.grad on this very model and text. "
        "Ctrl-C ends the training early and reports what was learnt so far.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    version = importlib.metadata.version("jax_bptt")
    parser.add_argument("--version", action="version", version=f"jax_bptt {version}, jax {jax.__version__}")
    data = parser.add_argument_group("text")
    data.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8 text to learn, the last tenth of which is held out (default: the language reference that ships "
        "with Python)",
        default=argparse.SUPPRESS,
    )
    data.add_argument("--chunk", type=_count, default=64, metavar="N", help="steps of a chunk, an update each")
    data.add_argument("--batch", type=_count, default=32, metavar="N", help="streams read side by side")
    model = parser.add_argument_group("model")
    model.add_argument("--cell", choices=CELLS, default="gru", help="kind of recurrent cell")
    model.add_argument("--hidden", type=_count, default=192, metavar="N", help="units of a layer")
    model.add_argument("--layers", type=_count, default=1, metavar="N", help="layers of cells")
    model.add_argument("--embedding", type=_count, default=32, metavar="N", help="size of a character's embedding")
    truncation = parser.add_argument_group("truncation")
    truncation.add_argument(
        "--k1",
        type=_count,
        metavar="N",
        help=f"steps from one window's end to the next (default: {DEFAULT_K1}, or --k2 if that is less)",
        default=argparse.SUPPRESS,
    )
    truncation.add_argument(
        "--k2",
        type=_count,
        metavar="N",
        help="steps that a window's losses travel back at most, at least --k1 (default: --k1)",
        default=argparse.SUPPRESS,
    )
    truncation.add_argument(
        "--exact",
        action="store_true",
        help="no truncation inside a chunk: all credit travels back to its beginning (default: truncated)",
        default=argparse.SUPPRESS,
    )
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=_count, default=1800, metavar="N", help="updates, one per chunk")
    training.add_argument(
        "--lr", type=_positive, default=6e-3, metavar="RATE", help="peak learning rate of Adam, with cosine decay"
    )
    training.add_argument(
        "--clip", type=_positive, default=1.0, metavar="NORM", help="largest global norm of a gradient"
    )
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of the initial parameters and the sample")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--sample", type=_count_or_zero, default=400, metavar="N", help="characters of sample, 0 for none"
    )
    report.add_argument(
        "--temperature", type=_positive, default=0.7, metavar="X", help="of the sample: below 1 is more cautious"
    )
    report.add_argument("--out", default="jax_bptt_report.png", metavar="FILE", help="where the picture goes")
    return parser


def _number(convert: Callable[[str], Any], accept: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    def parse(found: str) -> Any:
        try:
            value = convert(found)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"found {found}, expected {expected}")
        return value

    return parse


_count = _number(int, lambda n: n >= 1, "a whole number of at least 1")
_count_or_zero = _number(int, lambda n: n >= 0, "a whole number of at least 0")
_positive = _number(float, lambda x: 0 < x < float("inf"), "a positive number")


if __name__ == "__main__":
    sys.exit(main())
