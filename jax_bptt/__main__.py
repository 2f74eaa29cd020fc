"""`python -m jax_bptt` and `jax-bptt`: the command-line program, which is `jax_bptt.command`."""

import sys

from jax_bptt.command import main

if __name__ == "__main__":
    sys.exit(main())
