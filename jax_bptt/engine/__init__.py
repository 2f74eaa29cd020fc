"""The engine: exact and truncated BPTT of any step, by hand. Private; start at `window_gradient`, which is the idea.

It reads top to bottom, each room using those above it:

    leaves              lists of leaves, None where there is no derivative
    step/               one step as it is read, without time: its graph, its parts, its derivative
    platforms           another program for another platform
    windows             time cut into windows
    schedule, plan      what is computed of a call, and how: every default
    outer_products      gradients of weights, sums over rows
    call                a step, a loss and their arguments
    flatten             from a call to flat leaves, and back
    call_plan           the plan of a call, read off it
    objective           the losses as they count
    solvers/            recursions over the steps of a window, in turn or all at once
    forward             states of a window, of all windows
    window_gradient     credit, recursion, immediate partials
    truncation/         windows that nothing is handed on from, side by side or in turn; gates that are drawn
    whole_steps         steps that are better not cut, by JAX's own derivative of a scan
    passes              forward pass and reverse pass of a schedule
"""
