"""A new attention variant is one file and one line of a config: ``gated_heads.py``."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.axes import ShardingRules
from model.parameter import declarations
from model.transformer import Transformer
from tests.model import gated_heads, reference, small

GATED = dict(
    attention="tests.model.gated_heads:GatedHeads", embed_dim=16, num_heads=8, num_kv_heads=2
)


def test_it_is_short():
    assert len(inspect.getsource(gated_heads).splitlines()) < 40


@pytest.mark.parametrize("value_map", ["factored", "full"])
def test_forward_equals_the_reference(value_map):
    config = small.config(**GATED, mlp="none", num_layers=1, value_map=value_map)
    model, tokens = small.drawn(config), small.tokens(config)
    w = reference.weights(model)
    heads = reference.within(reference.layer(w, config, 0), "attention")

    def normed(vectors, name):
        gains = reference.within({k.removeprefix("blocks.0."): v for k, v in w.items()}, name)
        gains = {k: v.reshape(-1) for k, v in gains.items()}
        return np.stack([reference.norm("rmsnorm", config.norm_epsilon, v, gains) for v in vectors])

    found = small.true_logits(model, tokens)
    for row, logits in zip(tokens, found, strict=True):
        residual = w["embedding"][row]
        x = normed(residual, "attention_norm")
        for h in range(config.num_heads):
            update = reference.head_update(config, heads, x, np.arange(len(row)), None, None, h)
            gate = 1 / (1 + np.exp(-(x @ heads["gate"][:, h])))
            residual = residual + gate[:, None] * update
        expected = normed(residual, "norm") @ w["unembedding"][: config.vocab_size].T
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_its_parameter_is_declared():
    config = small.config(**GATED)
    before = {
        d.path for d in declarations(small.abstract(small.changed(config, attention="multihead")))
    }
    after = {d.path: d for d in declarations(small.abstract(config))}
    assert set(after) - before == {"blocks.0.attention.gate"}
    gate = after["blocks.0.attention.gate"]
    assert (gate.shape, gate.axes, gate.kind) == (
        (2, 16, 8),
        ("layers", "embed", "heads"),
        "matrix",
    )


def test_it_leaves_the_other_parameters_as_they_were():
    config = small.config(**GATED, num_layers=1, mlp="none")
    plain, gated = (
        reference.weights(small.quickly(lambda key, c=c: Transformer(c, key))(jax.random.key(1)))
        for c in (small.changed(config, attention="multihead"), config)
    )
    for path, value in plain.items():
        np.testing.assert_array_equal(gated[path], value, err_msg=path)


def test_on_a_mesh_it_equals_one_device():
    config = small.config(**GATED, num_layers=1, mlp="none")
    tokens = small.tokens(config, batch=4, length=6)

    @small.quickly
    def start_and_run(key, tokens):
        model = Transformer(config, key)
        return model, model(tokens)

    def run(sizes):
        with jax.set_mesh(small.mesh(sizes)):
            placed = jax.device_put(tokens, ShardingRules().spec(("batch", "length"), tokens.shape))
            model, logits = start_and_run(jax.random.key(1), placed)
            return model, np.asarray(logits)

    one, expected = run({})
    many, found = run(dict(fsdp=2, heads=4))
    gate = many.blocks[0].attention.gate
    assert gate[...].sharding.shard_shape(gate.shape) == (1, 8, 2)
    for path, value in reference.weights(one).items():
        np.testing.assert_array_equal(reference.weights(many)[path], value, err_msg=path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_cached_decoding_equals_the_forward_pass():
    config = small.config(**GATED)
    model, tokens = small.drawn(config), small.tokens(config)
    expected = small.true_logits(model, tokens)
    decode = small.quickly(lambda model, *given: model.decode(*given))
    cache = model.empty_cache(*tokens.shape)
    every = jnp.broadcast_to(jnp.arange(small.LENGTH), tokens.shape)
    for here in (slice(0, 6), slice(6, 7)):
        logits, cache = decode(model, tokens[:, here], every[:, here], np.int32(here.start), cache)
        found = np.asarray(logits)[..., : config.vocab_size]
        np.testing.assert_allclose(found, expected[:, here], rtol=0, atol=1e-5)
