"""The arguments of the command: what it can be told, with its defaults, and whether that makes sense.

`text_arguments` and `digits_arguments` return what was said, whole, or exit with status 2 and a message that names the
argument, what was found and what was expected. Nothing is written.
"""

import argparse
import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import jax_bptt as jb

DEFAULT_K1 = 32
CELLS = {"elman": jb.cells.elman, "gru": jb.cells.gru, "lstm": jb.cells.lstm}
OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
}
#: What an argument is that was not given, where its help tells the default in words.
_UNSAID = {
    **dict.fromkeys(("text", "k1", "k2", "checkpoint", "log")),
    **dict.fromkeys(("exact", "online", "resume"), False),
}


def text_arguments(argv: Sequence[str] | None, file_types: Sequence[str]) -> tuple[argparse.Namespace, Callable]:
    """Those of the language model, and what exits with a message about an argument.

    Args:
        argv: those of the process where None.
        file_types: what a picture's name may end in.
    """
    parser = _text_parser()
    arguments = parser.parse_args(argv, argparse.Namespace(**_UNSAID))
    _check_file(parser, "--out", arguments.out, file_types)
    if arguments.log is not None:
        _check_file(parser, "--log", arguments.log)
    if arguments.checkpoint is not None:
        _check_directory(parser, "--checkpoint", arguments.checkpoint)
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume: found no --checkpoint, expected the directory to go on from")
    if arguments.exact and (arguments.k1 or arguments.k2):
        parser.error("--exact: found with --k1 or --k2, expected one or the other")
    if arguments.exact and arguments.online:
        parser.error("--exact: found with --online, expected one or the other")
    arguments.k1 = arguments.k1 or min(DEFAULT_K1, arguments.k2 or DEFAULT_K1)
    arguments.k2 = arguments.k2 or arguments.k1
    if arguments.k2 < arguments.k1:
        parser.error(f"--k2: found {arguments.k2}, expected at least --k1, which is {arguments.k1}")
    if arguments.online and arguments.chunk % arguments.k1:
        parser.error(f"--chunk: found {arguments.chunk}, expected a multiple of --k1, which is {arguments.k1}")
    return arguments, parser.error


def digits_arguments(argv: Sequence[str], file_types: Sequence[str]) -> argparse.Namespace:
    """Those of the digits."""
    parser = _digits_parser()
    arguments = parser.parse_args(argv)
    _check_file(parser, "--out", arguments.out, file_types)
    return arguments


def optimizer(arguments: argparse.Namespace, updates: int) -> optax.GradientTransformation:
    """The optimiser asked for, whose learning rate rises over a twentieth of the updates and falls as a cosine."""
    rate = optax.warmup_cosine_decay_schedule(0.0, arguments.lr, updates // 20, updates, arguments.lr / 50)
    return optax.chain(optax.clip_by_global_norm(arguments.clip), OPTIMIZERS[arguments.optimizer](rate))


def _check_file(parser: argparse.ArgumentParser, name: str, found: str, file_types: Sequence[str] = ()) -> None:
    """A file that can be written, which is tried in a way that leaves nothing behind."""
    path = Path(found)
    if file_types and path.suffix.lower().lstrip(".") not in file_types:
        parser.error(f"{name}: found {path}, expected a name that ends in one of .{', .'.join(file_types)}")
    if path.is_dir():
        parser.error(f"{name}: found the directory {path}, expected a file name")
    if not path.parent.is_dir():
        parser.error(f"{name}: found no directory {path.parent} to write in")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        parser.error(f"{name}: found {path}, which cannot be written: {error.strerror}")


def _check_directory(parser: argparse.ArgumentParser, name: str, found: str) -> None:
    """A directory that can be written, or made, which is tried in a way that leaves nothing behind."""
    path = Path(found).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        parser.error(f"{name}: found {found}, where nothing can be written: {error.strerror}")


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    version = importlib.metadata.version("jax_bptt")
    parser.add_argument("--version", action="version", version=f"jax_bptt {version}, jax {jax.__version__}")
    return parser


def _text_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "jax-bptt",
        "Train a character-level language model with backpropagation through time, on real text, and report how good "
        "it became. First the gradient is checked against jax.grad on this very model and text. Ctrl-C ends the "
        "training early and reports what was learnt so far. A second task, images read pixel by pixel, is told by "
        "jax-bptt digits --help.",
    )
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
    training.add_argument("--steps", type=_count, default=1800, metavar="N", help="chunks to train on, an update each")
    training.add_argument(
        "--online",
        action="store_true",
        help="an update every --k1 steps of a chunk, each by one window with the newest parameters (default: one per "
        "chunk)",
        default=argparse.SUPPRESS,
    )
    _add_optimizer(training, rate=6e-3)
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of the initial parameters and the sample")
    keeping = parser.add_argument_group("checkpoints")
    keeping.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="save all that training changes there, every so often and at the end, and go on from the newest "
        "checkpoint that is there (default: none is saved)",
        default=argparse.SUPPRESS,
    )
    keeping.add_argument(
        "--every", type=_count, default=100, metavar="N", help="chunks from one checkpoint to the next"
    )
    keeping.add_argument(
        "--resume",
        action="store_true",
        help="go on, and do not begin anew where there is no checkpoint (default: whichever it takes)",
        default=argparse.SUPPRESS,
    )
    report = parser.add_argument_group("report")
    report.add_argument(
        "--log",
        metavar="FILE",
        help="a line of JSON for each chunk: step, bits per character, gradient norm, seconds (default: no log)",
        default=argparse.SUPPRESS,
    )
    report.add_argument(
        "--sample", type=_count_or_zero, default=400, metavar="N", help="characters of sample, 0 for none"
    )
    report.add_argument(
        "--temperature", type=_positive, default=0.7, metavar="X", help="of the sample: below 1 is more cautious"
    )
    report.add_argument("--out", default="jax_bptt_report.png", metavar="FILE", help="where the picture goes")
    return parser


def _digits_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "jax-bptt digits",
        "Train a recurrent network to tell handwritten digits, which it reads pixel by pixel, with the exact gradient "
        "and with truncated ones. The loss is that of the last of 64 steps: what was read more than k2 steps before "
        "gets no credit.",
    )
    parser.add_argument("--cell", choices=CELLS, default="gru", help="kind of recurrent cell")
    parser.add_argument("--hidden", type=_count, default=64, metavar="N", help="units")
    parser.add_argument(
        "--k2", type=_count, nargs="+", default=[48, 32, 16, 4], metavar="N", help="horizons of the truncated gradients"
    )
    parser.add_argument("--epochs", type=_count, default=50, metavar="N", help="passes over the training images")
    parser.add_argument("--batch", type=_count, default=32, metavar="N", help="images of an update")
    _add_optimizer(parser, rate=1e-2)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of initial parameters and order of images")
    parser.add_argument("--out", default="jax_bptt_digits.png", metavar="FILE", help="where the picture goes")
    return parser


def _add_optimizer(group: Any, rate: float) -> None:
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="of optax")
    group.add_argument(
        "--lr", type=_positive, default=rate, metavar="RATE", help="peak learning rate, with cosine decay"
    )
    group.add_argument("--clip", type=_positive, default=1.0, metavar="NORM", help="largest global norm of a gradient")


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
