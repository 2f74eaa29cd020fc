"""Published results by which truncation is argued about, each reproduced by a small script.

    python -m tests.evidence                               all of them, and a page with their figures
    python -m tests.evidence --only influence_balancing    one alone

A script is a function `run(tell)` that returns a `Result` of `page`; its docstring gives task, claim and source. What
came of all of them is on `docs/evidence`.
"""
