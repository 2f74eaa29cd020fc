"""The gradient forwards in time: nothing of the past is kept, and there is one after every step.

influence           M_t = ∂h_t/∂θ, as far as it can be other than zero
over_time           the loop: credit of a step, M after it
carried             `rtrl`, exact; `snap1`, `eprop`, which keep less of M
stopped             the step of which e-prop is the exact gradient
rank_one            `uoro`: M as one random product
"""
