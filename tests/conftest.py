import os

import jax
from hypothesis import HealthCheck, settings

# Both precisions are tested: arrays carry their dtypes, and the default one is double.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

_common = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "print_blob": False}
settings.register_profile("default", max_examples=40, **_common)
settings.register_profile("thorough", max_examples=2000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
