"""Diagnostics: how far back credit travels, what truncation makes of it, and what the dynamics say.

    lag_profile, credit_matrix            ‖∂ℓ_s/∂h_t‖, by lag s − t or for all s and t, exact or truncated    credit
    truncation_bias                       how far a truncated gradient is from the exact one                 bias
    estimated_bias, suggest_k2            the same from the lag profile alone, and the horizon that it takes
    jacobian_norms, lyapunov_exponents    ∂h_t/∂h_{t−1}, by itself and along the trajectory                  dynamics
    time_to_halve                         the time in which credit halves or doubles
    explain                               what of a step runs where, and why                                 placement

Those that take a model are built once and then called like the gradient functions; what they return is a pure function
of arrays, to be jitted. Called outside of `jax.jit` they refuse states that are not finite.
"""

from jax_bptt.diagnostics.bias import TruncationBias as TruncationBias
from jax_bptt.diagnostics.bias import estimated_bias as estimated_bias
from jax_bptt.diagnostics.bias import suggest_k2 as suggest_k2
from jax_bptt.diagnostics.bias import truncation_bias as truncation_bias
from jax_bptt.diagnostics.credit import credit_matrix as credit_matrix
from jax_bptt.diagnostics.credit import lag_profile as lag_profile
from jax_bptt.diagnostics.dynamics import jacobian_norms as jacobian_norms
from jax_bptt.diagnostics.dynamics import lyapunov_exponents as lyapunov_exponents
from jax_bptt.diagnostics.dynamics import time_to_halve as time_to_halve
from jax_bptt.diagnostics.placement import Placement as Placement
from jax_bptt.diagnostics.placement import explain as explain
