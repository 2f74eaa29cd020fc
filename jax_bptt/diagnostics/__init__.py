"""Diagnostics: how far back credit travels, what truncation makes of it, and what the dynamics say.

    lag_profile, credit_matrix            ‖∂ℓ_s/∂h_t‖, by lag s − t or for all s and t, exact or truncated    credit
    truncation_bias                       how far a truncated gradient is from the exact one                 bias
    estimated_bias, suggest_k2            the same from the lag profile alone, and the horizon that it takes
    jacobian_norms, lyapunov_exponents    ∂h_t/∂h_{t−1}, by itself and along the trajectory                  dynamics
    time_to_halve                         the time in which credit halves or doubles

Those that take a model are built once and then called like the gradient functions; what they return is a pure function
of arrays, to be jitted. Called outside of `jax.jit` they refuse states that are not finite.
"""

from jax_bptt.diagnostics.bias import TruncationBias, estimated_bias, suggest_k2, truncation_bias
from jax_bptt.diagnostics.credit import credit_matrix, lag_profile
from jax_bptt.diagnostics.dynamics import jacobian_norms, lyapunov_exponents, time_to_halve

__all__ = [
    "TruncationBias",
    "credit_matrix",
    "estimated_bias",
    "jacobian_norms",
    "lag_profile",
    "lyapunov_exponents",
    "suggest_k2",
    "time_to_halve",
    "truncation_bias",
]
