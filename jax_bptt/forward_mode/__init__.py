"""The gradient forwards in time: nothing of the past is kept, and there is one after every step.

It reads top to bottom, each room using those above it:

    real_numbers   complex leaves as pairs of real ones
    recursion      the loop: credit of a step, M_t = ∂h_t/∂θ after it
    layout         which numbers M has: those that can be other than zero
    influence      M, how it is carried over a step
    stopped        the step of which e-prop is the exact gradient
    carried        `rtrl`, exact; `snap1`, `eprop`, which keep less of M
    rank_one       `uoro`: M as one random product
"""
