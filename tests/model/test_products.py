"""Products have the gradients of einsum, and no device multiplies what is wider than it need be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.products import Product

# Every product of the network: an activation with a weight, or with another activation.
SUBSCRIPTS = [
    "btd,df->btf",
    "btd,dhk->bhtk",
    "bhtr,hrd->btd",
    "bhtd,hde->bte",
    "btd,vd->btv",
    "bhtk,bhsk->bhts",
    "bhts,bhsr->bhtr",
]
SIZES = dict(b=2, t=5, s=7, d=6, f=4, h=3, k=2, r=8, e=9, v=10)


def operands(subscripts, dtype):
    rng = np.random.default_rng(0)
    terms = re.split("->|,", subscripts)
    return [jnp.asarray(rng.standard_normal([SIZES[i] for i in t]), dtype) for t in terms]


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_value_and_gradients_are_those_of_einsum(subscripts):
    x, w, dy = operands(subscripts, "float32")
    found, pull = jax.vjp(Product(subscripts, "float32", None), x, w)
    expected, pull_plain = jax.vjp(lambda x, w: jnp.einsum(subscripts, x, w), x, w)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for own, plain in zip(pull(dy), pull_plain(dy), strict=True):
        np.testing.assert_allclose(own, plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_bfloat16_gradients_are_sums_in_float32_of_bfloat16_products(subscripts):
    x, w, dy = operands(subscripts, "bfloat16")
    _, pull = jax.vjp(Product(subscripts, "float32", None), x, w)
    wide = [np.asarray(a, np.float64) for a in (x, w, dy)]
    left, right, result = re.split("->|,", subscripts)
    exact = (
        np.einsum(f"{result},{right}->{left}", wide[2], wide[1]),
        np.einsum(f"{left},{result}->{right}", wide[0], wide[2]),
    )
    for own, expected in zip(jax.jit(pull)(dy.astype(jnp.float32)), exact, strict=True):
        assert own.dtype == jnp.bfloat16
        # One rounding to 8 bits, at the end.
        np.testing.assert_allclose(np.asarray(own, np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
@pytest.mark.parametrize("inner", [1, 7, 24, 96, 770])
def test_one_row_of_bfloat16_is_multiplied_exactly_and_summed_in_float32(subscripts, inner):
    """A path of its own, whatever the length of the sums."""
    left, right, result = re.split("->|,", subscripts)
    sizes = {**SIZES, "b": 1, "t": 1}
    sizes[next(i for i in left if i not in result)] = inner
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.standard_normal([sizes[i] for i in term]), "bfloat16")
        for term in (left, right)
    )
    found = jax.jit(Product(subscripts, "float32", None))(x, w)
    exact = np.einsum(subscripts.split("->")[0] + "->" + result, *(np.float64(a) for a in (x, w)))
    np.testing.assert_allclose(found, exact, rtol=0, atol=4e-6 * inner**0.5)


def lowered(subscripts, platform):
    """Returns the program of a product's value and gradients."""
    x, w, dy = operands(subscripts, "bfloat16")

    def both(x, w, dy):
        y, pull = jax.vjp(Product(subscripts, "float32", None), x, w)
        return y, pull(dy.astype(y.dtype))

    return jax.jit(both).trace(x, w, dy).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_all_three_products_multiply_bfloat16(subscripts, platform):
    program = lowered(subscripts, platform)
    operand_types = re.findall(r"dot_general.*: \((\S+), (\S+)\) -> (\S+)", program)
    assert len(operand_types) == 3
    for left, right, result in operand_types:
        assert left.endswith("xbf16>")
        assert right.endswith("xbf16>")
        assert result.endswith("xf32>")


def test_only_a_cpu_is_told_how_to_lay_out_an_operand():
    assert "LayoutConstraint" in lowered("btd,df->btf", "cpu")
    assert "LayoutConstraint" not in lowered("btd,df->btf", "tpu")
