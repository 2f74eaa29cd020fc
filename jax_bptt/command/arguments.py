"""The arguments of the command: what it can be told, with its defaults, and whether that makes sense.

`text_arguments` and `digits_arguments` return what was said, whole, or exit with status 2 and a message that names the
argument, what was found and what was expected. Nothing is written.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import optax

import jax_bptt as jb

DEFAULT_K1 = 32
ADAPTIVE_K1 = 8
ADAPT_EVERY = 100
"""Updates from one choice of the horizon to the next."""

CELLS = {"elman": jb.cells.elman, "gru": jb.cells.gru, "lstm": jb.cells.lstm}
OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
}
Number = TypeVar("Number", int, float)
Option = tuple[str, Any, Any, str, str]  # name, type or choices, default, metavar, help

#: What an argument is that was not given, where its help tells the default in words.
_UNSAID: dict[str, Any] = dict.fromkeys(("text", "k1", "k2", "adaptive", "devices", "checkpoint", "log"))
_UNSAID |= dict.fromkeys(("exact", "online", "resume"), False)


def text_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Callable[[str], NoReturn]]:
    """Those of the language model, and what exits with a message about an argument."""
    parser = _parser("jax-bptt", _ABOUT_TEXT, _TEXT)
    arguments = parser.parse_args(argv, argparse.Namespace(**_UNSAID))
    _check_file(parser, "--out", arguments.out, _picture_types())
    if arguments.log is not None:
        _check_file(parser, "--log", arguments.log)
    if arguments.checkpoint is not None:
        _check_directory(parser, "--checkpoint", arguments.checkpoint)
    if arguments.online and (arguments.devices or 1) > 1:
        parser.error(f"--devices: found {arguments.devices} with --online, expected 1")
    if arguments.resume and arguments.checkpoint is None:
        parser.error("--resume: found no --checkpoint, expected the directory to go on from")
    _settle_truncation(parser, arguments)
    return arguments, parser.error


def digits_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Those of the digits."""
    parser = _parser("jax-bptt digits", _ABOUT_DIGITS, {"": _DIGITS})
    arguments = parser.parse_args(argv)
    _check_file(parser, "--out", arguments.out, _picture_types())
    return arguments


def chosen_optimizer(arguments: argparse.Namespace, updates: int) -> optax.GradientTransformation:
    """The optimiser asked for, whose learning rate rises over a twentieth of the updates and falls as a cosine."""
    rate = optax.warmup_cosine_decay_schedule(0.0, arguments.lr, updates // 20, updates, arguments.lr / 50)
    return optax.chain(optax.clip_by_global_norm(arguments.clip), OPTIMIZERS[arguments.optimizer](rate))


def _settle_truncation(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Give --k1 and --k2 their defaults, which depend on each other, and refuse what does not go together."""
    if arguments.exact and (arguments.k1 or arguments.k2):
        parser.error("--exact: found with --k1 or --k2, expected one or the other")
    if arguments.exact and arguments.online:
        parser.error("--exact: found with --online, expected one or the other")
    arguments.horizons = _settle_horizons(parser, arguments)
    most = min(DEFAULT_K1, arguments.k2 or DEFAULT_K1, arguments.chunk)
    divisor = max(k1 for k1 in range(1, most + 1) if arguments.chunk % k1 == 0)
    arguments.k1 = arguments.k1 or (divisor if arguments.online else most)
    arguments.k2 = arguments.k2 or arguments.k1
    if arguments.k2 < arguments.k1:
        parser.error(f"--k2: found {arguments.k2}, expected at least --k1, which is {arguments.k1}")
    if arguments.online and arguments.chunk % arguments.k1:
        parser.error(f"--chunk: found {arguments.chunk}, expected a multiple of --k1, which is {arguments.k1}")


def _settle_horizons(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[int]:
    """Those that an adaptive one is chosen among, --k1, twice that and so on up to --chunk; none where it is not."""
    if arguments.adaptive is None:
        return []
    for name in ("exact", "online", "k2"):
        if getattr(arguments, name):
            parser.error(f"--adaptive: found with --{name}, expected one or the other")
    arguments.k1, arguments.k2 = arguments.k1 or min(ADAPTIVE_K1, max(1, arguments.chunk // 4)), arguments.chunk
    if arguments.chunk < 4 * arguments.k1:
        least = 4 * arguments.k1
        parser.error(f"--chunk: found {arguments.chunk} with --adaptive, expected {least} or more, four times --k1")
    horizons = [arguments.k1]
    while 2 * horizons[-1] < arguments.chunk:
        horizons.append(2 * horizons[-1])
    return [*horizons, arguments.chunk]


def _picture_types() -> list[str]:
    """The endings of the files that a picture can be written to."""
    from matplotlib.figure import Figure  # of an extra, without which there is `--help` all the same

    return sorted(Figure().canvas.get_supported_filetypes())


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


def _parser(prog: str, about: str, groups: Mapping[str, Sequence[Option]]) -> argparse.ArgumentParser:
    helpful = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=about, epilog=_NEEDS, formatter_class=helpful)
    parser.add_argument("--version", action="version", version=f"jax_bptt {jb.__version__}, jax {jax.__version__}")
    for title, options in groups.items():
        group = parser.add_argument_group(title) if title else parser
        for name, kind, default, metavar, text in options:
            if kind is bool:
                group.add_argument(name, action="store_true", default=default, help=text)
            elif isinstance(kind, Mapping):
                group.add_argument(name, choices=kind, default=default, help=text)
            else:
                nargs = "+" if isinstance(default, list) else None
                group.add_argument(name, type=kind, default=default, metavar=metavar, help=text, nargs=nargs)
    return parser


def _number(convert: Callable[[str], Number], accept: Callable[[Number], bool], what: str) -> Callable[[str], Number]:
    def parse(found: str) -> Number:
        try:
            value = convert(found)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"found {found}, expected {what}")
        return value

    return parse


_count = _number(int, lambda n: n >= 1, "a whole number of at least 1")
_count_or_zero = _number(int, lambda n: n >= 0, "a whole number of at least 0")
_share = _number(float, lambda x: 0 < x < 1, "a number between 0 and 1")
_amount = _number(float, lambda x: 0 < x < float("inf"), "a positive number")
_UNTOLD = argparse.SUPPRESS  # the help itself tells the default, in words


def _optimizer(rate: float) -> list[Option]:
    return [
        ("--optimizer", OPTIMIZERS, "adam", "", "of optax"),
        ("--lr", _amount, rate, "RATE", "peak learning rate, with cosine decay"),
        ("--clip", _amount, 1.0, "NORM", "largest global norm of a gradient"),
    ]


_NEEDS = (
    "It needs an extra: pip install 'jax_bptt[cli]'; with 'jax_bptt[checkpoint]' for --checkpoint. Without colours: "
    "NO_COLOR=1."
)
_ABOUT_TEXT = (
    "Train a character-level language model with backpropagation through time, on real text, and report how good it "
    "became. First the gradient is checked against jax.grad on this very model and text. Ctrl-C ends the training "
    "early and reports what was learnt so far. A second task, images read pixel by pixel, is told by jax-bptt digits "
    "--help."
)
_TEXT: dict[str, list[Option]] = {
    "text": [
        ("--text", str, _UNTOLD, "FILE", "UTF-8 text to learn, the last tenth of which is held out (default: the "
         "language reference that ships with Python)"),
        ("--chunk", _count, 64, "N", "steps of a chunk, an update each"),
        ("--batch", _count, 32, "N", "streams read side by side"),
    ],
    "model": [
        ("--cell", CELLS, "gru", "", "kind of recurrent cell"),
        ("--hidden", _count, 192, "N", "units of a layer"),
        ("--layers", _count, 1, "N", "layers of cells"),
        ("--embedding", _count, 32, "N", "size of a character's embedding"),
    ],
    "truncation": [
        ("--k1", _count, _UNTOLD, "N",
         f"steps from one window's end to the next (default: {DEFAULT_K1}, or --k2 or --chunk if less; with --online a "
         "divisor of --chunk)"),
        ("--k2", _count, _UNTOLD, "N",
         "steps that a window's losses travel back at most, at least --k1 (default: --k1)"),
        ("--adaptive", _share, _UNTOLD, "TOLERANCE",
         f"the shortest horizon whose relative bias is at most that, chosen anew every {ADAPT_EVERY} chunks among --k1 "
         f"(then {ADAPTIVE_K1} if not told), 2 --k1, 4 --k1 and so on up to --chunk (default: none, it is --k2)"),
        ("--exact", bool, _UNTOLD, "",
         "no truncation inside a chunk: all credit travels back to its beginning (default: truncated)"),
    ],
    "training": [
        ("--steps", _count, 1800, "N", "chunks to train on, an update each; more than a checkpoint's lengthen its "
         "training, with the learning rate of so many"),
        ("--devices", _count, _UNTOLD, "N", "devices that the streams are divided among, on a CPU a core each "
         "(default: as many as divide --batch with 8 streams each; 1 with --online)"),
        ("--online", bool, _UNTOLD, "", "an update every --k1 steps of a chunk, each by one window with the newest "
         "parameters (default: one per chunk)"),
        *_optimizer(6e-3),
        ("--seed", _count_or_zero, 0, "N", "of the initial parameters and the sample"),
    ],
    "checkpoints": [
        ("--checkpoint", str, _UNTOLD, "DIR", "save all that training changes there, every so often and at the end, "
         "and go on from the newest checkpoint that is there (default: none is saved)"),
        ("--every", _count, 100, "N", "chunks from one checkpoint to the next"),
        ("--resume", bool, _UNTOLD, "",
         "go on, and do not begin anew where there is no checkpoint (default: whichever it takes)"),
    ],
    "report": [
        ("--log", str, _UNTOLD, "FILE",
         "a line of JSON for each chunk: step, bits per character, gradient norm, seconds (default: no log)"),
        ("--sample", _count_or_zero, 400, "N", "characters of sample, 0 for none"),
        ("--temperature", _amount, 0.7, "X", "of the sample: below 1 is more cautious"),
        ("--out", str, "jax_bptt_report.png", "FILE", "where the picture goes"),
    ],
}  # fmt: skip
_ABOUT_DIGITS = (
    "Train a recurrent network to tell handwritten digits, which it reads pixel by pixel, with the exact gradient and "
    "with truncated ones. The loss is that of the last of 64 steps: what was read more than k2 steps before gets no "
    "credit."
)
_DIGITS: list[Option] = [
    ("--cell", CELLS, "gru", "", "kind of recurrent cell"),
    ("--hidden", _count, 64, "N", "units"),
    ("--k2", _count, [48, 32, 16, 4], "N", "horizons of the truncated gradients"),
    ("--epochs", _count, 50, "N", "passes over the training images"),
    ("--batch", _count, 32, "N", "images of an update"),
    *_optimizer(1e-2),
    ("--seed", _count_or_zero, 0, "N", "of initial parameters and order of images"),
    ("--out", str, "jax_bptt_digits.png", "FILE", "where the picture goes"),
]
