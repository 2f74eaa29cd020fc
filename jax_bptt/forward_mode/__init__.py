"""The gradient forwards in time: nothing of the past is kept, and there is one after every step.

It reads top to bottom, each room using those above it:

    recursion   the loop: credit of a step, M_t = ∂h_t/∂θ after it
    influence   M, as far as it can be other than zero
    stopped     the step of which e-prop is the exact gradient
    carried     `rtrl`, exact; `snap1`, `eprop`, which keep less of M
    rank_one    `uoro`: M as one random product
"""
