"""Layers cut where they are used have the values and gradients of layers cut before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.axes import ShardingRules
from model.parameter import Declare
from model.products import Product
from model.stacks import Slice, after, cut_where_used, unstacked
from tests.model import small

LAYERS = 3


def stack():
    """Returns a stack of two matrices and a bias, as a block has them."""
    declare = Declare(jax.random.key(0), ShardingRules(), "float32")
    first = declare.matrix("first", (LAYERS, 4, 6), ("layers", "embed", "mlp"), "embed")
    second = declare.matrix("second", (LAYERS, 6, 4), ("layers", "mlp", "embed"), "mlp")
    bias = declare.bias("bias", (LAYERS, 6), ("layers", "mlp"))
    return dict(first=first, second=second, bias=bias)


def run(cut, blocks, x):
    for layer in cut(blocks, LAYERS):
        hidden = Product("bd,df->bf", "float32", None).by_made(
            x, lambda param: param[...], layer["first"]
        )
        hidden = jnp.tanh(hidden + layer["bias"][...][None])
        x = x + Product("bf,fd->bd", "float32", None).by_made(
            hidden, lambda param: param[...], layer["second"]
        )
    return jnp.square(x).sum()


def test_values_and_gradients_are_those_of_layers_cut_before():
    blocks, x = stack(), jax.random.normal(jax.random.key(1), (5, 4))
    by_both = [
        jax.jit(jax.value_and_grad(lambda b, x, cut=cut: run(cut, b, x), argnums=(0, 1)))(blocks, x)
        for cut in (unstacked, cut_where_used)
    ]
    leaves = [jax.tree.leaves(found) for found in by_both]
    assert len(leaves[0]) == len(leaves[1]) == 5
    for own, expected in zip(leaves[1], leaves[0], strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in leaves[1])


def test_only_matrices_are_cut_where_used():
    layer = cut_where_used(stack(), LAYERS)[1]
    assert isinstance(layer["first"].get_value(), Slice)
    assert layer["first"].shape == (4, 6)
    assert layer["first"].dtype == jnp.float32
    assert layer["first"].ndim == 2
    assert isinstance(layer["bias"].get_value(), jax.Array)
    np.testing.assert_array_equal(layer["first"][...], stack()["first"][1])


@pytest.mark.parametrize(
    "use",
    [
        lambda w, x: x @ w,
        lambda w, x: w.T @ x.T,
        lambda w, x: 2 * w + x[:1].T,
        lambda w, x: x[:1].T - w / 3,
        lambda w, x: -w,
        lambda w, x: w**2,
        lambda w, x: jnp.sin(w) * w,
        lambda w, x: jnp.einsum("bd,df->bf", x, w),
        lambda w, x: w.astype(jnp.bfloat16).reshape(2, -1),
        lambda w, x: w[1, 2:] + w[0, :-2],
    ],
)
def test_a_variant_may_use_its_matrix_as_an_array(use):
    """Its author need not know how the layers are cut."""
    x = jax.random.normal(jax.random.key(1), (5, 4))
    late, own = (cut(stack(), LAYERS)[1]["first"] for cut in (cut_where_used, unstacked))
    np.testing.assert_allclose(
        np.asarray(use(late, x), np.float32), np.asarray(use(own, x), np.float32), rtol=1e-6
    )


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -7e30, np.inf, -np.inf, np.nan, 1e-45, -1e-45])
def test_what_a_slice_waits_for_does_not_change_it(value):
    """Whatever the bits of the number are."""
    whole = jnp.arange(24.0).reshape(3, 2, 4)
    late = Slice(whole, whole[1], 1).after(jnp.full((2, 2), value, jnp.float32))
    np.testing.assert_array_equal(jax.jit(lambda late: late[...])(late), whole[1])


def test_other_leaves_are_tied_and_not_changed():
    parts, y = dict(a=jnp.ones(3), b=nnx.Param(jnp.ones(2))), jnp.zeros(4)
    tied = after(parts, y)
    assert jax.tree.map(jnp.shape, tied) == jax.tree.map(jnp.shape, parts)


@pytest.mark.parametrize("function", [small.cross_entropy, jax.grad(small.cross_entropy)])
def test_no_copy_of_all_matrices_is_held(monkeypatch, function):
    """The matrices of 8 layers have 4.7 MB. Gradients wait to be joined, as many bytes again."""
    sizes = dict(embed_dim=128, num_heads=4, head_dim=32, value_dim=32, mlp_dim=320)
    config = small.config(num_layers=8, scan_layers=False, max_length=128, **sizes)
    matrices = 8 * 4 * (4 * 128 * 128 + 2 * 128 * 320)
    model, tokens = small.abstract(config), jax.ShapeDtypeStruct((1, 128), jnp.int32)

    def temporary():
        # A function of its own: jax keeps what it traced.
        compiled = jax.jit(lambda *given: function(*given)).lower(model, tokens, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    held = temporary()
    monkeypatch.setattr("model.transformer.cut_where_used", unstacked)
    assert temporary() - held > 0.6 * matrices
