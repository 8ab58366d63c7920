"""Attention over a sharded sequence, around the ring and by exchange, as on one device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.compiled.operations import product_operations
from launch.compiled.program import Program
from model import zigzag
from model.axes import TOKENS, ShardingRules
from model.backends import blocks, blockwise, splash
from model.compute import Compute
from model.transformer import Transformer
from tests.model import small
from tests.model.attending import KINDS, check_in_the_zigzag, check_on_a_mesh
from train.loss import summed_loss

RING = Compute("float32", "float32", ShardingRules(context_attention="ring"))
EXCHANGE = Compute("float32", "float32", ShardingRules(context_attention="all_to_all"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of at most two tokens, so that a shard has several."""
    monkeypatch.setattr(blocks, "BLOCK", 2)


@pytest.mark.parametrize("kind", ["grouped", "all", "score with all"])
def test_an_exchange_is_as_one_device(kind):
    check_on_a_mesh(blockwise.attend, kind, dict(heads=2, context=2), EXCHANGE)


@pytest.mark.parametrize(
    "kind", ["plain", "all", "score with all", "score and visible, full value map"]
)
def test_a_ring_is_as_one_device(kind):
    check_on_a_mesh(blockwise.attend, kind, dict(heads=2, context=4), RING)


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_the_kernel_in_a_ring_is_as_one_device(monkeypatch, kind):
    """Of two pieces of 128 tokens on each of two devices, in the zigzag order."""
    monkeypatch.setattr(splash, "INTERPRET", True)
    how = KINDS[kind] | (dict(window=None, sink=True) if kind == "all" else {})
    check_in_the_zigzag(splash.attend, how, RING)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_zigzag_gives_every_device_as_many_visible_pairs(devices):
    length = 12 * devices
    order = zigzag.order(length, devices)
    assert sorted(order) == list(range(length))
    shards = order.reshape(devices, -1)
    visible = [(shard[:, None] >= np.arange(length)[None]).sum() for shard in shards]
    assert len(set(visible)) == 1
    # And in each turn of the ring, whoever's keys they are.
    for turn in range(1, devices):
        keys = [shards[(i - turn) % devices] for i in range(devices)]
        pairs = [(q[:, None] >= k[None]).sum() for q, k in zip(shards, keys, strict=True)]
        assert len(set(pairs)) == 1


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("shape", [(4, 48), (4, 48, 3)], ids=str)
def test_tokens_go_into_the_zigzag_and_back(devices, shape):
    axes = ("batch", "length", None)[: len(shape)]
    x = np.arange(math.prod(shape)).reshape(shape)
    with jax.set_mesh(small.mesh(dict(context=devices))):
        moved = jax.jit(lambda x: zigzag.into(x, axes, RING))(jnp.asarray(x))
        np.testing.assert_array_equal(moved, x[:, zigzag.order(48, devices)])
        again = jax.jit(lambda x: zigzag.back(x, axes, RING))(moved)
        np.testing.assert_array_equal(again, x)


MODELS = {
    "plain": dict(),
    "windows, grouped, tied": dict(
        num_kv_heads=2, window=(None, 5), tie_embeddings=True, positions="learned"
    ),
    "full value map": dict(value_map="full"),
    "no scan, remat": dict(scan_layers=False, remat="matmuls"),
}


@pytest.mark.parametrize("sizes", [{}, dict(context=4)], ids=["blocks", "ring"])
def test_what_keeps_products_computes_no_attention_again(sizes):
    def operations(remat):
        shape = small.config(remat=remat, attention_backend="blockwise", scan_layers=True)
        rules = ShardingRules(context_attention="ring")
        with jax.set_mesh(small.mesh(sizes)):
            model = jax.eval_shape(lambda: Transformer(shape, jax.random.key(0), rules))
            spec = model.compute.rules.spec(TOKENS, (2, 16))
            tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32, sharding=spec)

            def loss(model, tokens):
                return model.last_residual(tokens).sum()

            made = jax.jit(jax.grad(loss)).lower(model, tokens).compile()
        return product_operations(Program(made.as_text(), open_ended=1))

    none = operations("none")
    assert operations("matmuls") == none
    assert operations("block") > 1.2 * none


def on_mesh(name, sizes, way, residual="replicated"):
    """Returns the loss, the residual and the gradients of a model on a mesh; packed documents."""
    config = small.config(embed_dim=16, num_heads=8, num_layers=2, mlp_dim=24, **MODELS[name])
    tokens = small.tokens(config, 2, 32)
    segments = np.sort(np.random.default_rng(0).integers(0, 3, tokens.shape), 1)
    rules = ShardingRules.of(ConfigDict(dict(residual=residual, context_attention=way)))
    key = jax.random.key(0)

    def loss(model, tokens, segments, labels):
        x = model.last_residual(tokens, None, segments)
        weights = jnp.ones(tokens.shape) / tokens.size
        return summed_loss(model, x, labels, weights, jnp.zeros(()))[0], x

    with jax.set_mesh(small.mesh(sizes)):
        model = jax.jit(lambda key: Transformer(config, key, rules))(key)
        model = jax.tree.map(lambda x: 1.5 * x, model)  # so that patterns are not flat
        spec = ShardingRules().spec(("batch", "length"), tokens.shape)
        rows = (jax.device_put(x, spec) for x in (tokens, segments, np.roll(tokens, -1, 1)))
        value = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, *rows)
        (total, x), gradients = value
        return [np.asarray(total), np.asarray(x), *map(np.asarray, jax.tree.leaves(gradients))]


@pytest.mark.parametrize(
    ("name", "sizes", "way", "residual"),
    [
        ("plain", dict(context=4, heads=2), "all_to_all", "sharded"),
        ("windows, grouped, tied", dict(context=4, heads=2), "ring", "sharded"),
        ("full value map", dict(context=2, heads=4), "auto", "sharded"),
        ("no scan, remat", dict(context=8), "ring", "replicated"),
    ],
    ids=lambda value: str(value),
)
def test_a_model_on_long_sequences_is_as_on_one_device(name, sizes, way, residual):
    found, expected = on_mesh(name, sizes, way, residual), on_mesh(name, {}, "auto")
    for own, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, whole, rtol=0, atol=1e-5 * (1 + np.abs(whole).max()))
