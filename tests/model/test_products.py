"""Products have the gradients of einsum, and no device multiplies what is wider than it need be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs.errors import UserError
from launch.compiled.collectives import collectives
from launch.compiled.program import Program
from model.axes import TOKENS, ShardingRules
from model.compute import Compute
from model.devices import choice, cpu, plain
from model.parameter import Declare
from model.products import lookup, multiply
from tests.model import small

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


def product(subscripts):
    """Returns a product of two arrays, without a mesh."""
    return lambda x, w: multiply(subscripts, x, [w], "float32", [None], [None])[0]


def operands(subscripts, dtype):
    rng = np.random.default_rng(0)
    terms = re.split("->|,", subscripts)
    return [jnp.asarray(rng.standard_normal([SIZES[i] for i in t]), dtype) for t in terms]


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_value_and_gradients_are_those_of_einsum(subscripts):
    x, w, dy = operands(subscripts, "float32")
    found, pull = jax.vjp(product(subscripts), x, w)
    expected, pull_plain = jax.vjp(lambda x, w: jnp.einsum(subscripts, x, w), x, w)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for own, true in zip(pull(dy), pull_plain(dy), strict=True):
        np.testing.assert_allclose(own, true, rtol=0, atol=2e-6)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_bfloat16_gradients_are_sums_in_float32_of_bfloat16_products(subscripts):
    x, w, dy = operands(subscripts, "bfloat16")
    _, pull = jax.vjp(product(subscripts), x, w)
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
    found = jax.jit(product(subscripts))(x, w)
    exact = np.einsum(subscripts.split("->")[0] + "->" + result, *(np.float64(a) for a in (x, w)))
    np.testing.assert_allclose(found, exact, rtol=0, atol=4e-6 * inner**0.5)


def lowered(subscripts):
    """Returns the program of a product's value and gradients."""
    x, w, dy = operands(subscripts, "bfloat16")

    def both(x, w, dy):
        y, pull = jax.vjp(product(subscripts), x, w)
        return y, pull(dy.astype(y.dtype))

    return jax.jit(both).lower(x, w, dy).as_text()


@pytest.mark.parametrize("way", [plain.Plain(), cpu.CPU()], ids=["plain", "cpu"])
@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_all_three_products_multiply_bfloat16(monkeypatch, subscripts, way):
    monkeypatch.setitem(choice.DEVICES, "cpu", way)
    program = lowered(subscripts)
    operand_types = re.findall(r"dot_general.*: \((\S+), (\S+)\) -> (\S+)", program)
    assert len(operand_types) == 3
    for left, right, result in operand_types:
        assert left.endswith("xbf16>")
        assert right.endswith("xbf16>")
        assert result.endswith("xf32>")
    # Only a CPU is told how to lay out an operand.
    assert ("LayoutConstraint" in program) <= isinstance(way, cpu.CPU)


@pytest.mark.parametrize("way", [plain.Plain(), cpu.CPU()], ids=["plain", "cpu"])
def test_several_products_of_one_activation_have_the_gradients_of_each(monkeypatch, way):
    monkeypatch.setitem(choice.DEVICES, "cpu", way)
    x, w, _ = operands("btd,dhk->bhtk", "float32")
    more = [w, 2 * w[:, :2], w[..., :1]]

    def squares(products):
        return sum(jnp.square(y).sum() for y in products)

    def together(x, ws):
        return squares(multiply("btd,dhk->bhtk", x, ws, "float32", [None] * 3, [None] * 3))

    def apart(x, ws):
        return squares(jnp.einsum("btd,dhk->bhtk", x, w) for w in ws)

    gradients = [jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (together, apart)]
    found, expected = (gradient(x, more) for gradient in gradients)
    for own, plain_gradient in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(own, plain_gradient, rtol=1e-5, atol=1e-5)
    # A CPU joins the matrices, or else their results' cotangents, for each of the three products.
    count = gradients[0].lower(x, more).as_text().count("dot_general ")
    assert count == (3 if isinstance(way, cpu.CPU) else 9)


@pytest.mark.parametrize("sizes", [dict(fsdp=2), dict(heads=2), {}], ids=str)
def test_a_rows_gradient_is_summed_in_float32(sizes):
    """In bfloat16 the sum of 4,096 equal terms would stop at 256 of them."""
    compute = Compute("bfloat16", "float32", ShardingRules())
    declare = Declare(jax.random.key(0), compute.rules, "float32")
    with jax.set_mesh(small.mesh(sizes)):
        table = declare.table("table", (4, 8), ("vocab", "embed"), 1.0)
        tokens = compute.reshard(jnp.ones((2, 2048), jnp.int32), TOKENS)

        def loss(table):
            return compute.rows(table, tokens).astype(jnp.float32).sum()

        found = jax.jit(jax.grad(loss))(table)[...]
        assert found.sharding.spec == table[...].sharding.spec
    expected = np.zeros((4, 8))
    expected[1] = 4096
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


@pytest.mark.parametrize(
    "subscripts", ["btd,dhk", "...d,df->...f", "btd,df->bt", "bt,d->td", "b,t,d->btd", "bd->b"]
)
def test_subscripts_that_are_no_product_are_refused(subscripts):
    compute = Compute("float32", "float32", ShardingRules())
    with pytest.raises(UserError, match="einsum .* each index in two of the three"):
        compute.einsum(subscripts, jnp.ones((2, 3, 4)), jnp.ones((4, 5)), axes=(None,) * 3)


def test_subscripts_may_have_spaces():
    compute, x, w = (
        Compute("float32", "float32", ShardingRules()),
        jnp.ones((2, 3)),
        jnp.ones((3, 5)),
    )
    found = compute.einsum("b d, d f -> b f", x, w, axes=(None, None))
    np.testing.assert_allclose(found, x @ w)


def test_the_gradient_of_a_table_is_scattered_and_each_shard_summed_once():
    sizes = dict(data=2, fsdp=2, heads=2, context=1)
    rows, width = 12, 8
    rng = np.random.default_rng(0)
    index = rng.integers(0, rows, (4, 6))
    slope = rng.standard_normal((4, 6, width)).astype(np.float32)
    with jax.set_mesh(small.mesh(sizes)):
        table = jax.device_put(np.zeros((rows, width), np.float32), P("heads", "fsdp"))
        of_tokens = P(("data", "fsdp"), None, None)
        given = jax.device_put(slope, of_tokens)

        def total(table, index):
            read = lookup(table, index, "float32", P("heads", None), of_tokens)
            return (read * given).sum()

        made = jax.jit(jax.grad(total)).lower(table, index).compile()
        found = np.asarray(made(table, index))
        moved = collectives(Program(made.as_text()), sizes)
    expected = np.zeros((rows, width), np.float32)
    np.add.at(expected, index, slope)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    scattered, summed = (
        [c for c in moved if c.kind == k] for k in ("reduce-scatter", "all-reduce")
    )
    assert [(c.axes, c.operands) for c in scattered] == [(("fsdp",), (("f32", (6, 8)),))]
    assert [(c.axes, c.operands) for c in summed] == [(("data",), (("f32", (6, 4)),))]
