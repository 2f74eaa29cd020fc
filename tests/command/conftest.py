import pytest

from jax_bptt.command import text


@pytest.fixture(scope="package", autouse=True)
def _shared_compilations(tmp_path_factory):
    """What one run of the command has compiled, the next ones of the same sizes need not compile again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compilations")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture
def small_text(tmp_path, unoptimised):
    path = tmp_path / "small.txt"
    path.write_text(text.python_reference()[:30_000] + "\x1b[31m\x07\ttab é", encoding="utf-8")
    return str(path)
