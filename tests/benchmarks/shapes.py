"""What is measured: cells, and shapes (T, B, I, H, O)."""

from typing import NamedTuple


class Shape(NamedTuple):
    T: int
    B: int
    I: int
    H: int
    O: int


# Of one kind each: (T, B, I, H, O).
SHAPES = [
    Shape(512, 32, 64, 128, 64),
    Shape(512, 32, 64, 256, 64),
    Shape(1024, 1, 32, 128, 32),
    Shape(1024, 1, 32, 512, 32),
    Shape(512, 128, 64, 64, 64),
    Shape(256, 64, 128, 512, 128),
]
TRUNCATED = [
    Shape(1024, 1, 64, 128, 64),
    Shape(1024, 1, 64, 512, 64),
    Shape(1024, 32, 64, 128, 64),
    Shape(1024, 32, 64, 256, 64),
]
STREAMS = [Shape(4096, 1, 32, 128, 32), Shape(4096, 32, 32, 64, 32)]
LONG = [Shape(65536, 8, 32, 64, 32)]
ON_A_DEVICE = [
    Shape(512, 32, 64, 256, 64),
    Shape(1024, 1, 32, 512, 32),
    Shape(512, 128, 64, 64, 64),
    Shape(512, 256, 256, 1024, 256),
]
QUICK = [Shape(32, 2, 3, 8, 4)]
CELLS = ("elman", "gru", "lstm")
