"""python -m tests.evidence: run the scripts, and write a page with their figures."""

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.evidence import page

SCRIPTS = [*("influence_balancing", "two_lag_coins", "adaptive_copy", "temporal_order", "lorenz", "checkpointing")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run them.

    Raises:
        SystemExit: if a claim was not seen; the page is written all the same.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="which scripts; all by default")
    parser.add_argument("--out", type=Path, default=Path("evidence"), help="folder of the page (default: evidence)")
    options = parser.parse_args(argv)
    to, entries = Console(highlight=False, soft_wrap=True), []
    for number, name in enumerate(options.only, 1):
        to.print(f"{number} of {len(options.only)}: {name}", style="bold")
        started = time.perf_counter()

        def tell(line: str, started: float = started) -> None:
            to.print(f"  {time.perf_counter() - started:4.0f} s  {line}", markup=False)

        entries.append(page.run_script(importlib.import_module(f"tests.evidence.{name}"), tell))
        for claim, seen in entries[-1].result.claims.items():
            to.print(f"  {'seen' if seen else 'NOT SEEN'}: {claim}", markup=False)
        path = page.write(entries, options.out)
    to.print(f"page: {path}")
    if missed := [claim for entry in entries for claim, seen in entry.result.claims.items() if not seen]:
        raise SystemExit(f"not seen: {missed}")


if __name__ == "__main__":
    main()
