"""Recursions over the time steps of a window, in turn or all at once.

It reads top to bottom, each room using those above it:

    sequential   a loop over time steps, so many in a body
    at_once      y_t = K_t y_{t−1} + c_t, of small blocks, in log T rounds
    block_maps   δ and the state as such recursions
"""
