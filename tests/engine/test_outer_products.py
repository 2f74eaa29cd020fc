"""Sums over rows are what einsum says, however many axes the rows have, and on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.engine.outer_products import with_outer_products


@pytest.fixture(params=["cpu", "elsewhere"])
def platform(request):
    if request.param == "elsewhere":
        request.getfixturevalue("elsewhere")


@pytest.mark.parametrize("axes", ["", "w", "wb", "wkb"])
@pytest.mark.parametrize(("m", "n"), [(3, 5), (5, 3), (4, 4)])
def test_equals_einsum(platform, axes, m, n):
    rng = np.random.default_rng(0)
    shape = [2 + i for i in range(len(axes))]
    a, b, c = rng.normal(size=(*shape, m)), rng.normal(size=(*shape, n)), rng.normal(size=(m, n))

    def function(a, b):
        return {"sum": jnp.einsum(f"{axes}m,{axes}n->mn", a, b) + c, "zero": jnp.zeros(())}

    got = with_outer_products(function, a, b)
    np.testing.assert_allclose(got["sum"], np.einsum(f"{axes}m,{axes}n->mn", a, b) + c, rtol=1e-12)
    assert got["zero"] == 0


def test_other_products_stay_as_they_are(platform):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 5))
    for form in ("wbm,wbn->wmn", "wbm,wbn->wbmn", "wbm,wbn->bmn", "wbm,wbn->mwn"):
        want = jax.make_jaxpr(lambda a, b, form=form: jnp.einsum(form, a, b))(a, b)
        got = jax.make_jaxpr(lambda a, b, form=form: with_outer_products(lambda a, b: jnp.einsum(form, a, b), a, b))(
            a, b
        )
        assert "platform_index" not in str(got)
        np.testing.assert_allclose(
            jax.core.eval_jaxpr(got.jaxpr, got.consts, a, b), jax.core.eval_jaxpr(want.jaxpr, want.consts, a, b)
        )


@pytest.mark.parametrize(("m", "n"), [(3, 5), (5, 3)])
def test_the_narrower_operand_comes_first(m, n):
    a, b = np.ones((4, 2, m)), np.ones((4, 2, n))
    text = (
        jax.jit(lambda a, b: with_outer_products(lambda a, b: jnp.einsum("wbm,wbn->mn", a, b), a, b))
        .trace(a, b)
        .lower(lowering_platforms=("cpu",))
        .as_text()
    )
    (product,) = [line for line in text.splitlines() if "dot_general" in line]
    assert "(tensor<8x3xf64>, tensor<8x5xf64>) -> tensor<3x5xf64>" in product
