import os

import jax
import pytest
from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")

# Both precisions are tested: arrays carry their dtypes, and the default one is double.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)

OLDER = jax.__version_info__ < (0, 11)
UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
UNOPTIMISED += " --xla_cpu_use_fusion_emitters=false" * OLDER

if PROFILE == "default":
    # Hundreds of small programs are run once each and judged by their numbers: LLVM need not optimise them, nor get
    # them in parts, and XLA's older emitter, as long as there is one, takes a third of the time. The thorough profile,
    # and what the tests start as a process of its own, are compiled as users' programs are.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}")
        jax.block_until_ready(jax.jit(lambda: 0)())  # reads the flags

_common = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "print_blob": False}
settings.register_profile("default", max_examples=40, **_common)
settings.register_profile("thorough", max_examples=1000, **_common)
settings.load_profile(PROFILE)


RUN = pytest.StashKey[int]()


def pytest_runtest_teardown(item, nextitem):
    """Forget what was compiled after each module, and after each hundred tests.

    Thousands of compiled programs take more mappings of memory than Linux grants one process.
    """
    stash = item.config.stash
    stash[RUN] = stash.get(RUN, 0) + 1
    if nextitem is None or nextitem.path != item.path or stash[RUN] % 100 == 0:
        jax.clear_caches()


@pytest.fixture
def as_users_have_it():
    """Single precision, and ranks that are promoted."""
    changed = {"jax_enable_x64": False, "jax_numpy_rank_promotion": "allow"}
    before = {name: jax.config.values[name] for name in changed}
    for name, value in changed.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def unoptimised(monkeypatch):
    """Compile what is started as a process as the tests are: for one that runs but a few small steps."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}")


@pytest.fixture
def elsewhere(monkeypatch):
    """Compile what would be compiled for other platforms than CPU."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **platforms: default(*args))


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Compute here what would be computed on a GPU."""

    def choose(*args, default, cuda=None, **platforms):
        return (cuda or default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
