"""Credit that does not travel all the way: windows that are computed apart, and gates that are drawn.

    reverse_truncated   windows side by side, nothing handed on
    in_turn             windows that meet, one after the other
    draws               where truncation without bias cuts
    derivatives         what a gradient that is cut is differentiated as

The first two are ways of computing the same; the last two are for what calls the engine.
"""
