"""The benchmark: ours beside what else computes the same gradient, in turns, in one process.

    python -m tests.benchmarks --help

`peers` has what ours is compared with, `tables` which of them stand in a row, `measure` takes time and memory, and
`__main__` prints one table, and writes it as JSON and as a `picture`.
"""
