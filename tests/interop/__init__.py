"""Cells of Flax, Equinox and Haiku, unchanged, as steps of one example."""
