"""The first task: train a character-level language model with BPTT on real text, and report how good it became.

text → check of the gradient on this model and text → training → held-out bits per character, sample, picture
"""

import argparse
import functools
import hashlib
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import jax_bptt as jb
from jax_bptt.command import devices, language_model, ngrams, picture, records, terminal, text
from jax_bptt.command.arguments import ADAPT_EVERY, CELLS, chosen_optimizer
from jax_bptt.command.gradient_check import Gradient, compare_gradients, distance
from jax_bptt.command.language_model import LOSS, TextTask, Training, first_chunk
from jax_bptt.model import PyTree
from jax_bptt.training import TrainState, Update

Refuse = Callable[[str], NoReturn]  # with a message about an argument


class TextRun(NamedTuple):
    """All that the arguments decide."""

    arguments: argparse.Namespace
    task: TextTask
    mesh: Mesh | None  # the devices that the streams are divided among, where there are several
    update: Update
    begin: TrainState
    settings: dict[str, Any]  # what the parameters at the end depend on


def prepare_text(arguments: argparse.Namespace, refuse: Refuse) -> Callable[[], None]:
    """What runs once the arguments make sense; where they do not, exits with what is wrong, and writes nothing."""
    mesh = None if arguments.online else devices.over(arguments.devices, arguments.batch, refuse)
    task = _text_task(arguments, refuse)
    run = TextRun(arguments, task, mesh, *_update(task, arguments, mesh), _settings(task, arguments))
    try:
        found = records.find_checkpoint(arguments.checkpoint, run.settings, run.begin)
    except ValueError as error:
        refuse(f"--checkpoint: {error}")
    if found is None and arguments.resume:
        refuse(f"--resume: found no checkpoint in {arguments.checkpoint}, expected one to go on from")
    return lambda: _run_text(run, found or Training(run.begin, np.zeros(0), np.zeros(0, int), np.zeros(0)))


def _text_task(arguments: argparse.Namespace, refuse: Refuse) -> TextTask:
    """Read the text and make the model."""
    corpus = text.corpus(_read_text(arguments.text, refuse))
    try:
        inputs, targets = text.chunks(corpus.train, arguments.chunk, arguments.batch)
    except ValueError as error:
        refuse(f"--{error}; a smaller --chunk or --batch needs less")
    if len(corpus.held_out) < 3:
        refuse(f"--text: found {len(corpus.held_out)} characters to hold out, a tenth of it, expected at least 3")
    return TextTask(corpus, inputs, targets, _model(arguments, len(corpus.vocabulary)))


def _read_text(path: str | None, refuse: Refuse) -> str:
    try:
        whole = text.python_reference() if path is None else text.read(path)
    except OSError as error:
        refuse(f"--text: cannot read {path}: {error.strerror}")
    except ValueError as error:
        refuse(f"--text: {error}")
    return whole or refuse(f"--text: found {path} empty, expected some text")


def _model(arguments: argparse.Namespace, vocabulary: int) -> jb.Cell:
    sizes = [arguments.embedding, *[arguments.hidden] * arguments.layers]
    outputs = [None] * (arguments.layers - 1) + [vocabulary]
    layers = [
        CELLS[arguments.cell](i, h, o, output_bias=True)
        for (i, h), o in zip(itertools.pairwise(sizes), outputs, strict=True)
    ]
    cell = layers[0] if len(layers) == 1 else jb.cells.stack(layers)
    return language_model.with_embedding(cell, vocabulary, arguments.embedding)


def _gradients(task: TextTask, arguments: argparse.Namespace, mesh: Mesh | None) -> tuple[Gradient, Gradient]:
    """The gradient that is trained with, and the same by `jax.grad` on one device."""
    if arguments.exact:
        ours, other = (of.bptt(task.model, LOSS, reduction="mean") for of in (jb, jb.reference))
        return _on_devices(ours, mesh), other
    other = jb.reference.truncated_bptt(task.model, LOSS, arguments.k1, arguments.k2, reduction="mean")
    return _truncated(task, arguments, mesh, arguments.k2), other


def _truncated(task: TextTask, arguments: argparse.Namespace, mesh: Mesh | None, k2: int) -> Gradient:
    return _on_devices(jb.truncated_bptt(task.model, LOSS, arguments.k1, k2, reduction="mean"), mesh)


def _on_devices(gradient: Gradient, mesh: Mesh | None) -> Gradient:
    return gradient if mesh is None else jb.data_parallel(gradient, mesh, devices.AXIS)


def _update(task: TextTask, arguments: argparse.Namespace, mesh: Mesh | None) -> tuple[Update, TrainState]:
    """The update that is trained with, and where training begins."""
    chunk, batch = task.inputs.shape[1:]
    per_chunk = chunk // arguments.k1 if arguments.online else 1
    chosen = chosen_optimizer(arguments, arguments.steps * per_chunk)
    params, carry = task.model.init(_keys(arguments)[0]), task.model.initial_state(batch)
    if arguments.adaptive is not None:
        gradient_of = functools.partial(_truncated, task, arguments, mesh)
        horizons, tolerance = arguments.horizons, arguments.adaptive
        pair = jb.training.train_adaptively(gradient_of, chosen, horizons, tolerance, every=ADAPT_EVERY)
        return pair.update, devices.placed(pair.init(params, carry), mesh)
    if not arguments.online:
        begin = devices.placed(jb.training.init(params, chosen, carry), mesh)
        return jb.training.train_step(_gradients(task, arguments, mesh)[0], chosen), begin
    k1, k2 = arguments.k1, arguments.k2
    online = jb.training.train_online(task.model, LOSS, chosen, k1, k2, reduction="mean")
    return online.update, online.init(params, carry, task.inputs[0], task.targets[0])


def _keys(arguments: argparse.Namespace) -> jax.Array:
    """For the initial params and for the sample."""
    return jax.random.split(jax.random.key(arguments.seed))


def _settings(task: TextTask, arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("chunk", "batch", "cell", "hidden", "layers", "embedding", "k1", "k2", "adaptive", "exact", "online")
    more = ("steps", "optimizer", "lr", "clip", "seed")
    of_text = hashlib.sha256(task.corpus.train.tobytes()).hexdigest()[:16]
    return {"text": of_text} | {name: getattr(arguments, name) for name in names + more}


def _run_text(run: TextRun, training: Training) -> None:
    out, started = terminal.console(), time.perf_counter()
    arguments, before = run.arguments, len(training.bits)
    _print_task(run, out)
    if before:
        out.print(f"going on from step {before} of {arguments.steps}, saved in {arguments.checkpoint}\n")
    else:
        _check_gradient(run, out)
    training = _train_text(run, training, out)
    if len(training.bits) < arguments.steps:
        out.print(f"interrupted after {len(training.bits)} of {arguments.steps} steps: this is what was learnt so far")
    _report(run, training, out)
    out.print(f"\npicture: {arguments.out}\n{time.perf_counter() - started:.0f} s in all")


def _print_task(run: TextRun, out: Console) -> None:
    arguments, corpus = run.arguments, run.task.corpus
    chunks, chunk, batch = run.task.inputs.shape
    size = sum(leaf.size for leaf in jax.tree.leaves(run.begin.params))
    name = arguments.text or "the Python language reference"
    out.print(
        f"text:  {name}, {len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, "
        f"{len(corpus.vocabulary)} kinds"
    )
    out.print(
        f"model: {arguments.cell}, {arguments.layers} x {arguments.hidden} units, {size:,} parameters; "
        f"chunks of {chunk} steps, {batch} streams, {chunks} chunks a pass"
    )
    if not arguments.online:
        for name in ("k1", *(["k2"] if arguments.k2 > arguments.k1 else [])):
            if getattr(arguments, name) > chunk:
                told = f"--{name} {getattr(arguments, name)} is more than --chunk {chunk}"
                out.print(f"{told}: credit travels back to the beginning of a chunk, and no further")
    if run.mesh is not None:
        out.print(f"runs on {run.mesh.size} devices, {batch // run.mesh.size} streams on each")
    out.print()


def _check_gradient(run: TextRun, out: Console) -> None:
    """Print the hand-rolled gradient beside that of `jax.grad`, and the truncated beside the exact one."""
    arguments, task, params = run.arguments, run.task, devices.on_one(run.begin.params)
    steps = arguments.chunk if arguments.exact else min(arguments.chunk, arguments.k2 + 7 * arguments.k1)
    kind = "exact" if arguments.exact else f"truncated, k1 = {arguments.k1}, k2 = {arguments.k2}"
    kind = kind if arguments.adaptive is None else f"{kind}, the longest horizon"
    gradient, reference = _gradients(task, arguments, run.mesh)
    comparison = compare_gradients(gradient, reference, *first_chunk(task, params, steps))
    title = f"Gradient of {steps} steps ({kind}), hand-rolled beside jax.grad"
    terminal.print_comparison(out, title, comparison, 1 if run.mesh is None else run.mesh.size)
    if not arguments.exact and arguments.adaptive is None:
        exact = jb.bptt(task.model, LOSS, reduction="mean")
        cosine, norm, difference = distance(gradient, exact, *first_chunk(task, params))
        out.print(
            f"truncated beside exact gradient of a chunk, before training: cosine {cosine:.4f}, "
            f"{norm:.4f} of its norm, difference {difference:.1e} of its norm"
        )
    out.print()


def _train_text(run: TextRun, training: Training, out: Console) -> Training:
    """Train until the end or until Ctrl-C, and tell and keep how far it came."""
    arguments, before = run.arguments, len(training.bits)
    bits_of = language_model.held_out_bits(run.task.model, run.task.corpus.held_out)

    def measure(params: PyTree) -> float:
        return bits_of(devices.on_one(params))

    with (
        terminal.progress(out, arguments.steps, terminal.CHARACTERS, before) as advance,
        terminal.interruptible() as interrupted,
        records.keep_checkpoints(arguments.checkpoint, run.settings) as save,
        records.keep_log(arguments.log, before) as log,
    ):
        chunks = language_model.train_language_model(
            run.task, run.update, run.begin, training, arguments.steps, measure
        )
        for training, gradient_norm in chunks:
            steps, ends = len(training.bits), interrupted()
            advance(steps, float(training.bits[-20:].mean()), (steps - before) * run.task.inputs[0].size)
            log(steps, training.bits[-1], gradient_norm, int(training.horizons[-1]))
            if steps % arguments.every == 0 or steps == arguments.steps or ends:
                save(training)
            if ends:
                break
    if np.isnan(training.held_out[-1]):  # it ended early
        measured = np.append(training.held_out[:-1], measure(training.state.params))
        training = training._replace(held_out=measured)
    return training


def _report(run: TextRun, training: Training, out: Console) -> None:
    """Print the table and a sample, and draw the picture."""
    task, (untrained, params) = run.task, devices.on_one((run.begin.params, training.state.params))
    counted = {
        "unigram": ngrams.unigram_bits(task.corpus),
        "bigram": ngrams.bigram_bits(task.corpus),
        "interpolated trigram": ngrams.trigram_bits(task.corpus),
    }
    learnt = float(training.held_out[-1])
    rows = [(name, f"{bits:.3f}") for name, bits in [*counted.items(), (f"this {run.arguments.cell}", learnt)]]
    out.print()
    terminal.print_table(out, "Held-out text", ("model", "bits per character"), rows)
    if run.arguments.adaptive is not None:
        chosen = zip(*np.unique(training.horizons, return_counts=True), strict=True)
        told = ", ".join(f"{horizon} steps in {count} chunks" for horizon, count in chosen)
        out.print(f"\nhorizons chosen: {told}")
    if run.arguments.sample:
        _print_sample(run, params, out)
    read = [(i + 1) * task.inputs[0].size for i in range(len(training.bits))]
    of = {"before training": untrained, "after training": params}
    norms = {name: language_model.credit_over_time(task, params).tolist() for name, params in of.items()}
    horizons = training.horizons.tolist() if run.arguments.adaptive is not None else None
    here = np.isfinite(training.held_out)
    measured = np.asarray(read)[here].tolist(), training.held_out[here].tolist()
    picture.draw(run.arguments.out, read, training.bits.tolist(), measured, counted, norms, horizons)


def _print_sample(run: TextRun, params: Any, out: Console) -> None:
    arguments, (corpus, *_, model) = run.arguments, run.task
    key, prompt = _keys(arguments)[1], jnp.asarray(corpus.held_out[: arguments.chunk])
    drawn = language_model.sample(model, params, key, prompt, arguments.sample, arguments.temperature)
    out.print(f"\nSample at temperature {arguments.temperature:g}:\n")
    out.print(terminal.printable(text.decode(corpus.vocabulary, np.asarray(drawn).tolist())), soft_wrap=True)
