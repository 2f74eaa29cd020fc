"""Checks: what is refused before anything is traced.

    options    those of a gradient function, when it is built
    trees      one argument by itself: its leaves
    models     what step and loss make of one example
    arguments  those of a call, beside each other
    calls      functions of a checked call, made functions of arguments

Every message names what was wrong, what was found and what was expected.
"""
