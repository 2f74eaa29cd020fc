"""The command-line program: two tasks to train on, with a report of what came of it.

    arguments → train_text        a language model, learnt from text
              → digits            images, read pixel by pixel

What was said is read before anything is imported that needs an extra, so that `--help` is to be had without.

`text` makes integers of characters, `language_model` is trained on them, and `ngrams` has what it should beat.
`gradient_check` lays the gradient beside that of `jax.grad`, `devices` divides the streams among the cores, `records`
keeps checkpoints and a log, `terminal` says how it goes, and `picture` draws how it went. Nothing else of the package
imports this one.

Needs rich, matplotlib and scikit-learn: `pip install 'jax_bptt[cli]'`.
"""

import sys
from collections.abc import Sequence

from jax_bptt.command.arguments import digits_arguments, text_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit status: 0, 1 where an extra is not installed, 130 where it was interrupted before it had learnt
        anything. Wrong arguments exit with 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:  # either task imports what needs an extra
        if argv and argv[0] == "digits":
            arguments = digits_arguments(argv[1:])
            from jax_bptt.command.digits import prepare_digits

            run = prepare_digits(arguments)
        else:
            arguments, refuse = text_arguments(argv)
            from jax_bptt.command.train_text import prepare_text

            run = prepare_text(arguments, refuse)
    except ModuleNotFoundError as error:
        extra = "checkpoint" if (error.name or "").startswith("orbax") else "cli"
        needs = f"found no module {error.name}, which the command needs: pip install 'jax_bptt[{extra}]'"
        print(f"jax-bptt: {needs}", file=sys.stderr)
        return 1
    try:
        run()
    except KeyboardInterrupt:
        print("\njax-bptt: interrupted", file=sys.stderr)
        return 130
    return 0
