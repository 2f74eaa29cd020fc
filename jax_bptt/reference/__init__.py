"""The same gradients by `jax.grad`, as plain as can be: what everything else is compared with.

A batched step in one `lax.scan`, differentiated by JAX; for truncation one such scan per window, from a state that
`stop_gradient` makes a constant. Called like the functions of the same names at the top of the package; `window`,
`save` and `parallel` are ways of computing that these do not have.

    gradients   the functions that users build
    calls       what they do with a call; the derivatives of truncated gradients are theirs
"""

from jax_bptt.reference.gradients import artbp, bptt, randomized_telescope, truncated_bptt

__all__ = ["artbp", "bptt", "randomized_telescope", "truncated_bptt"]
