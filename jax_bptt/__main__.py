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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jax_bptt as jb
from jax_bptt import text

CELLS = {"elman": jb.cells.elman, "gru": jb.cells.gru, "lstm": jb.cells.lstm}
LOSS = jb.losses.softmax_cross_entropy


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit status: 0, 1 where an extra is not installed, 130 where it was interrupted before it had learnt
        anything. Wrong arguments exit with 2.
    """
    parser = _parser()
    arguments = parser.parse_args(argv, argparse.Namespace(text=None))
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


class Task(NamedTuple):
    """What is trained on what."""

    corpus: text.Corpus
    inputs: np.ndarray  # [K, T, B]
    targets: np.ndarray  # [K, T, B]
    model: jb.Cell


class Training(NamedTuple):
    """What came of training."""

    params: Any
    bits: list[float]
    """Bits per character of the chunk of each update."""


def train(
    task: Task,
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    advance: Callable[[int, float, int], None],
    interrupted: Callable[[], bool],
) -> Training:
    """Make `steps` updates, one per chunk, the state carried from chunk to chunk and begun anew with the text.

    Args:
        task: what is trained on what.
        params: where it begins.
        optimizer: of optax.
        steps: how many updates.
        advance: is told after each update how many there were, recent bits per character, and characters read.
        interrupted: ends the training where it tells that it was; at least one update is made.
    """
    gradient = jb.bptt(task.model, LOSS, reduction="mean")

    @jax.jit
    def update(params, opt_state, state, inputs, targets):
        (loss, state), grads = gradient(params, state, inputs, targets)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, loss / jnp.log(2)

    chunks, chunk, batch = task.inputs.shape
    start = state = task.model.initial_state(batch)
    opt_state = optimizer.init(params)
    bits: list[float] = []
    recent = 0.0
    for i in range(steps):
        if i % chunks == 0:
            state = start
        params, opt_state, state, loss = update(
            params, opt_state, state, task.inputs[i % chunks], task.targets[i % chunks]
        )
        bits.append(float(loss))
        recent += (bits[-1] - recent) / min(len(bits), 20)
        advance(i + 1, recent, (i + 1) * chunk * batch)
        if interrupted():
            break
    return Training(params, bits)


def held_out_bits(model: jb.Cell, params: Any, ids: np.ndarray) -> float:
    """Bits per character of one long text, read from its beginning; from the third character on, as for a trigram."""

    @jax.jit
    def loss(params, inputs, targets):
        def read(state, tokens):
            token, next_token = tokens
            state, logits = model.step(params, state, token)
            return state, LOSS(logits, next_token)

        start = jax.tree.map(lambda leaf: leaf[0], model.initial_state(1))
        return jax.lax.scan(read, start, (inputs, targets))[1][1:].mean()

    return float(loss(params, ids[:-1], ids[1:]) / np.log(2))


def credit(task: Task, params: Any) -> np.ndarray:
    """‖∂L/∂h_t‖ at every step of the first chunk, over all streams and leaves of the state."""
    deltas = jax.jit(jb.state_gradients(task.model, LOSS, reduction="mean"))
    state = task.model.initial_state(task.inputs.shape[2])
    leaves = jax.tree.leaves(deltas(params, state, task.inputs[0], task.targets[0]))
    return np.sqrt(sum(np.square(leaf).sum(axis=tuple(range(1, leaf.ndim))) for leaf in leaves))


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
    _check_gradient(task, params, out, terminal)

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, arguments.lr, arguments.steps // 20, arguments.steps, arguments.lr / 50
    )
    optimizer = optax.chain(optax.clip_by_global_norm(arguments.clip), optax.adam(schedule))
    with terminal.progress(out, arguments.steps) as advance, terminal.interruptible() as interrupted:
        training = train(task, params, optimizer, arguments.steps, advance, interrupted)
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
    out.print(terminal.table("Held-out text", ("model", "bits per character"), rows))
    if arguments.sample:
        prompt = jnp.asarray(task.corpus.held_out[: min(chunk, len(task.corpus.held_out))])
        drawn = text.sample(task.model, training.params, key_sample, prompt, arguments.sample, arguments.temperature)
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


def _check_gradient(task: Task, params: Any, out: Any, terminal: Any) -> None:
    """Print the hand-rolled gradient beside that of `jax.grad`, on the first chunk."""
    from jax_bptt.compare import compare

    gradients = (make(task.model, LOSS, reduction="mean") for make in (jb.bptt, jb.reference.bptt))
    state = task.model.initial_state(task.inputs.shape[2])
    grads = [lambda *arguments, g=g: g(*arguments)[1] for g in gradients]
    comparison = compare(*grads, params, state, task.inputs[0], task.targets[0])
    rows = [(name, f"{difference:.1e}") for name, difference in comparison.differences.items()]
    title = "Gradient: hand-rolled beside jax.grad"
    out.print(terminal.table(title, ("parameter", "largest relative difference"), rows))
    ours, other = comparison.cost, comparison.other
    rows = [
        ("jax_bptt.bptt", terminal.seconds(ours.seconds), terminal.mebibytes(ours.temporary_bytes)),
        ("jax.grad", terminal.seconds(other.seconds), terminal.mebibytes(other.temporary_bytes)),
        ("ratio", f"{ours.seconds / other.seconds:.2f}", f"{ours.temporary_bytes / other.temporary_bytes:.2f}"),
    ]
    out.print(terminal.table("Cost of one gradient, compiled", ("", "time (median of 5)", "temporary memory"), rows))
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
    return Task(corpus, inputs, targets, text.language_model(cell, len(corpus.vocabulary), arguments.embedding))


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
    data.add_argument("--chunk", type=_count, default=64, metavar="N", help="steps of a chunk, credit's longest way")
    data.add_argument("--batch", type=_count, default=32, metavar="N", help="streams read side by side")
    model = parser.add_argument_group("model")
    model.add_argument("--cell", choices=CELLS, default="gru", help="kind of recurrent cell")
    model.add_argument("--hidden", type=_count, default=192, metavar="N", help="units of a layer")
    model.add_argument("--layers", type=_count, default=1, metavar="N", help="layers of cells")
    model.add_argument("--embedding", type=_count, default=32, metavar="N", help="size of a character's embedding")
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
