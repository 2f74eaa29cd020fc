"""The command: train a character-level language model with BPTT on real text, and report how good it became.

text → check of the gradient on this model and text → training → held-out bits per character, sample, picture

`digits` as the first argument is another task, told in the module of that name.
"""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt import digits, text
from jax_bptt.arguments import CELLS, optimizer, text_arguments
from jax_bptt.characters import (
    LOSS,
    Gradient,
    Task,
    Training,
    credit,
    distance,
    held_out_bits,
    language_model,
    sample,
    train,
)
from jax_bptt.compare import compare
from jax_bptt.training import TrainState, Update


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit status: 0, 1 where an extra is not installed, 130 where it was interrupted before it had learnt
        anything. Wrong arguments exit with 2.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        from jax_bptt import plots, terminal

        is_digits = argv[:1] == ["digits"]
        run = digits.prepare(argv[1:], terminal, plots) if is_digits else _prepare(argv, terminal, plots)
    except ImportError as error:
        extra = "checkpoint" if (error.name or "").startswith("orbax") else "cli"
        print(f"jax-bptt: {error}; the command needs pip install 'jax_bptt[{extra}]'", file=sys.stderr)
        return 1
    try:
        run()
    except KeyboardInterrupt:
        print("\njax-bptt: interrupted", file=sys.stderr)
        return 130
    return 0


def _prepare(argv: Sequence[str], terminal: Any, plots: Any) -> Callable[[], None]:
    """What runs once the arguments make sense; where they do not, exits with what is wrong, and writes nothing."""
    arguments, refuse = text_arguments(argv, plots.file_types())
    task = _task(arguments, refuse)
    update, begin = _update(task, arguments)
    settings = _settings(task, arguments)
    found = None
    if arguments.checkpoint is not None:
        from jax_bptt import checkpoint

        try:
            found = checkpoint.restore(arguments.checkpoint, settings, (begin, np.zeros(arguments.steps)))
        except ValueError as error:
            refuse(f"--checkpoint: {error}")
        if found is None and arguments.resume:
            refuse(f"--resume: found no checkpoint in {arguments.checkpoint}, expected one to go on from")
    training = Training(begin, np.zeros(0))
    if found is not None:
        training = Training(jax.tree.map(jnp.asarray, found[1][0]), np.asarray(found[1][1])[: found[0]])
    return lambda: _run(task, arguments, update, begin, training, settings, terminal, plots)


def _settings(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the parameters at the end depend on."""
    names = ("chunk", "batch", "cell", "hidden", "layers", "embedding", "k1", "k2", "exact", "online")
    more = ("steps", "optimizer", "lr", "clip", "seed")
    of_text = hashlib.sha256(task.corpus.train.tobytes()).hexdigest()[:16]
    return {"text": of_text} | {name: getattr(arguments, name) for name in names + more}


def _run(
    task: Task,
    arguments: argparse.Namespace,
    update: Update,
    begin: TrainState,
    training: Training,
    settings: Mapping[str, Any],
    terminal: Any,
    plots: Any,
) -> None:
    out = terminal.console()
    started = time.perf_counter()
    chunks, chunk, batch = task.inputs.shape
    size = sum(leaf.size for leaf in jax.tree.leaves(begin.params))
    name = arguments.text or "the Python language reference"
    out.print(
        f"text:  {name}, {len(task.corpus.train):,} characters to train on, {len(task.corpus.held_out):,} held out, "
        f"{len(task.corpus.vocabulary)} kinds"
    )
    out.print(
        f"model: {arguments.cell}, {arguments.layers} x {arguments.hidden} units, {size:,} parameters; "
        f"chunks of {chunk} steps, {batch} streams, {chunks} chunks a pass\n"
    )
    before = len(training.bits)
    if before:
        out.print(f"going on from step {before} of {arguments.steps}, saved in {arguments.checkpoint}\n")
    else:
        _check_gradient(task, arguments, begin.params, out, terminal)

    with (
        terminal.progress(out, arguments.steps, terminal.CHARACTERS, before) as advance,
        terminal.interruptible() as interrupted,
        _saver(arguments, settings) as save,
        _log(arguments.log, before) as log,
    ):

        def after(training: Training, gradient_norm: float) -> None:
            steps = len(training.bits)
            advance(steps, float(training.bits[-20:].mean()), (steps - before) * chunk * batch)
            log(steps, training.bits[-1], gradient_norm)
            if steps % arguments.every == 0 or steps == arguments.steps or interrupted():
                save(training)

        training = train(task, update, begin, training, arguments.steps, after, interrupted)
    if len(training.bits) < arguments.steps:
        out.print(f"interrupted after {len(training.bits)} of {arguments.steps} steps: this is what was learnt so far")
    _report(task, arguments, begin.params, training, out, terminal, plots)
    out.print(f"\npicture: {arguments.out}\n{time.perf_counter() - started:.0f} s in all")


def _report(
    task: Task, arguments: argparse.Namespace, untrained: Any, training: Training, out: Any, terminal: Any, plots: Any
) -> None:
    """Print the table and a sample, and draw the picture."""
    chunk, batch = task.inputs.shape[1:]
    params = training.state.params
    counted = {
        "unigram": text.unigram_bits(task.corpus),
        "bigram": text.bigram_bits(task.corpus),
        "interpolated trigram": text.trigram_bits(task.corpus),
    }
    learnt = held_out_bits(task.model, params, task.corpus.held_out)
    rows = [(name, f"{bits:.3f}") for name, bits in [*counted.items(), (f"this {arguments.cell}", learnt)]]
    out.print()
    terminal.print_table(out, "Held-out text", ("model", "bits per character"), rows)
    if arguments.sample:
        key, prompt = _keys(arguments)[1], task.corpus.held_out[: min(chunk, len(task.corpus.held_out))]
        drawn = sample(task.model, params, key, jnp.asarray(prompt), arguments.sample, arguments.temperature)
        out.print(f"\nSample at temperature {arguments.temperature:g}:\n")
        out.print(terminal.printable(text.decode(task.corpus.vocabulary, np.asarray(drawn).tolist())))
    plots.report(
        arguments.out,
        [(i + 1) * chunk * batch for i in range(len(training.bits))],
        training.bits,
        learnt,
        counted,
        {"before training": credit(task, untrained), "after training": credit(task, params)},
    )


def _keys(arguments: argparse.Namespace) -> tuple[jax.Array, jax.Array]:
    """For the initial params and for the sample."""
    key_init, key_sample = jax.random.split(jax.random.key(arguments.seed))
    return key_init, key_sample


def _update(task: Task, arguments: argparse.Namespace) -> tuple[Update, TrainState]:
    """The update that is trained with, and where training begins."""
    chunk, batch = task.inputs.shape[1:]
    per_chunk = chunk // arguments.k1 if arguments.online else 1
    chosen = optimizer(arguments, arguments.steps * per_chunk)
    params, carry = task.model.init(_keys(arguments)[0]), task.model.initial_state(batch)
    if not arguments.online:
        return jb.training.train_step(_gradients(task, arguments)[0], chosen), jb.training.init(params, chosen, carry)
    k = {"k1": arguments.k1, "k2": arguments.k2}
    update = jb.training.train_online(task.model, LOSS, chosen, **k, reduction="mean")
    return update, jb.training.init(params, chosen, carry, xs=task.inputs[0], targets=task.targets[0], **k)


@contextmanager
def _saver(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> Iterator[Callable[[Training], None]]:
    """Saves how far training came, if that was asked for."""
    if arguments.checkpoint is None:
        yield lambda training: None
        return
    from jax_bptt import checkpoint

    with checkpoint.saver(arguments.checkpoint, settings) as save:

        def saved(training: Training) -> None:
            steps = len(training.bits)
            save(steps, (training.state, np.pad(training.bits, (0, arguments.steps - steps))))

        yield saved


@contextmanager
def _log(path: str | None, before: int) -> Iterator[Callable[[int, float, float], None]]:
    """Writes a line of JSON for each chunk, if that was asked for; those after the checkpoint gone on from go first."""
    if path is None:
        yield lambda step, bits, gradient_norm: None
        return
    file, started, kept = Path(path), time.perf_counter(), []
    if before and file.exists():
        kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= before]
    offset = json.loads(kept[-1])["seconds"] if kept else 0.0
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(f"{line}\n" for line in kept)

        def log(step: int, bits: float, gradient_norm: float) -> None:
            seconds = offset + time.perf_counter() - started
            record = {"step": step, "bits_per_character": bits, "gradient_norm": gradient_norm, "seconds": seconds}
            lines.write(json.dumps(record) + "\n")
            lines.flush()

        yield log


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite for one that a killed process left unfinished."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


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


def _task(arguments: argparse.Namespace, refuse: Callable[[str], Any]) -> Task:
    """Read the text and make the model."""
    try:
        whole = text.python_reference() if arguments.text is None else text.read(arguments.text)
    except OSError as error:
        refuse(f"--text: cannot read {arguments.text}: {error.strerror}")
        raise
    except ValueError as error:
        refuse(f"--text: {error}")
        raise
    if not whole:
        refuse(f"--text: found {arguments.text} empty, expected some text")
    corpus = text.corpus(whole)
    try:
        inputs, targets = text.chunks(corpus.train, arguments.chunk, arguments.batch)
    except ValueError as error:
        refuse(f"--{error}; a smaller --chunk or --batch needs less")
        raise
    if len(corpus.held_out) < 3:
        refuse(f"--text: found {len(corpus.held_out)} characters to hold out, a tenth of it, expected at least 3")
    sizes = [arguments.embedding, *[arguments.hidden] * arguments.layers]
    outputs = [None] * (arguments.layers - 1) + [len(corpus.vocabulary)]
    layers = [
        CELLS[arguments.cell](i, h, o, output_bias=True)
        for (i, h), o in zip(itertools.pairwise(sizes), outputs, strict=True)
    ]
    cell = layers[0] if len(layers) == 1 else jb.cells.stack(layers)
    return Task(corpus, inputs, targets, language_model(cell, len(corpus.vocabulary), arguments.embedding))


if __name__ == "__main__":
    sys.exit(main())
