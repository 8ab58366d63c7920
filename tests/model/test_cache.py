"""Cached decoding equals the whole forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.axes import ShardingRules
from model.cache import remember
from model.compute import Compute
from model.decoding import ready
from model.heads import Heads
from model.masks import NEVER, Mask
from tests.model import small

KINDS = {
    "rotary": {},
    "layers by default": dict(scan_layers=None, num_layers=4, window=(None, 3)),
    "grouped, learned, biases": dict(
        num_kv_heads=2, positions="learned", biases=True, norm="layernorm"
    ),
    "alternating windows": dict(window=(None, 3), num_layers=4, num_kv_heads=1),
    "alternating windows, unrolled": dict(window=(3, None), num_layers=4, scan_layers=False),
    "full value map": dict(value_map="full", num_kv_heads=2),
    "unrolled, query/key norm, cap": dict(scan_layers=False, query_key_norm=True, logit_cap=2.0),
    "parallel, remat": dict(parallel_blocks=True, remat="block"),
}
ROWS, LENGTH = 3, 8
decode = jax.jit(lambda model, *given: model.decode(*given))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prepare", [lambda model: model, ready], ids=["as trained", "ready"])
def test_decoding_equals_the_forward_pass(kind, prepare):
    """Prompts of 1, 3 and 4 tokens, padded to the right; then every row goes on alone."""
    config = small.config(**KINDS[kind])
    model, tokens = small.drawn(config), small.tokens(config, ROWS, LENGTH)
    expected = small.true_logits(model, tokens)
    model = prepare(model)
    cache = model.empty_cache(ROWS, 2 * LENGTH)

    prompts = np.array([1, 3, 4])
    given = np.arange(4)[None] < prompts[:, None]
    padded = np.where(given, tokens[:, :4], 7).astype(np.int32)
    index = np.where(given, np.arange(4)[None], -1).astype(np.int32)
    logits, cache = decode(model, padded, index, np.int32(0), cache)
    logits = np.asarray(logits)[..., : config.vocab_size]
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(logits[row, :prompt], expected[row, :prompt], rtol=0, atol=1e-5)

    place, slot = prompts.astype(np.int32), 4
    while (place < LENGTH).any():
        # A row that has ended adds padding.
        going = place < LENGTH
        here = np.where(going, place, -1).astype(np.int32)[:, None]
        there = np.minimum(place, LENGTH - 1)[:, None]
        new = np.take_along_axis(tokens, there, axis=1)
        logits, cache = decode(model, new, here, np.int32(slot), cache)
        found = np.asarray(logits)[:, 0, : config.vocab_size]
        truth = np.take_along_axis(expected, there[..., None], axis=1)[:, 0]
        np.testing.assert_allclose(found[going], truth[going], rtol=0, atol=1e-5)
        place, slot = place + 1, slot + 1


def test_decoding_token_by_token_from_nothing():
    config = small.config(window=(None, 3))
    model, tokens = small.drawn(config), small.tokens(config)
    expected = small.true_logits(model, tokens)
    cache = model.empty_cache(small.BATCH, small.LENGTH)
    for t in range(small.LENGTH):
        index = np.full((small.BATCH, 1), t, np.int32)
        logits, cache = decode(model, tokens[:, t : t + 1], index, np.int32(t), cache)
        found = np.asarray(logits)[:, 0, : config.vocab_size]
        np.testing.assert_allclose(found, expected[:, t], rtol=0, atol=1e-5)


def test_one_row_in_bfloat16_is_read_as_the_forward_pass_reads_it():
    """One row takes a path of its own; what is rounded where differs a little."""
    config = small.config(dtype="bfloat16", tie_embeddings=True, num_kv_heads=2, embed_dim=32)
    model, tokens = small.drawn(config), small.tokens(config)[:1]
    wide = small.drawn(small.changed(config, dtype="float32"))
    exact = small.true_logits(wide, tokens)
    whole = np.abs(small.true_logits(model, tokens) - exact).max()
    cache, errors = model.empty_cache(1, small.LENGTH), []
    decoder = ready(model)
    for t in range(small.LENGTH):
        index = np.full((1, 1), t, np.int32)
        logits, cache = decode(decoder, tokens[:, t : t + 1], index, np.int32(t), cache)
        found = np.asarray(logits)[:, 0, : config.vocab_size]
        errors.append(np.abs(found - exact[:, t]).max())
    assert max(errors) < 2 * whole


def test_a_ready_model_is_cast_and_its_layers_stand_apart():
    config = small.config(
        dtype="bfloat16",
        num_layers=4,
        window=(None, 3),
        tie_embeddings=True,
        biases=True,
        scan_layers=None,
    )
    model = small.drawn(config)
    made = ready(model)
    assert len(made.layers) == 4
    for layer, block in enumerate(made.layers):
        stack = model.blocks[layer % 2]
        assert block.window == stack.window
        assert block.attention.query.dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            block.attention.query[...], stack.attention.query[layer // 2].astype(jnp.bfloat16)
        )
        np.testing.assert_array_equal(
            block.attention.query_bias[...], stack.attention.query_bias[layer // 2]
        )
        assert block.attention_norm.gain.dtype == jnp.float32
    table = made.model.unembedding_table
    assert table.dtype == jnp.bfloat16
    np.testing.assert_array_equal(table[...], model.embedding[...].astype(jnp.bfloat16))
    # The stacks are not in memory beside their layers, but for one each.
    assert [stack.attention.query.shape[0] for stack in made.model.blocks] == [1, 1]
    assert ready(small.drawn(small.config(scan_layers=True))).layers is None


def test_what_a_cache_held_before_does_not_matter():
    config = small.config()
    model, tokens = small.drawn(config), small.tokens(config, length=3)
    index = np.broadcast_to(np.arange(3, dtype=np.int32), tokens.shape)
    clean = model.empty_cache(small.BATCH, 6)
    used = dataclasses.replace(
        clean, layers=jax.tree.map(lambda leaf: jnp.full_like(leaf, 9.0), clean.layers)
    )
    np.testing.assert_array_equal(
        decode(model, tokens, index, np.int32(0), clean)[0],
        decode(model, tokens, index, np.int32(0), used)[0],
    )


def test_new_tokens_take_the_slots_from_where_they_are_told():
    rng = np.random.default_rng(0)
    shapes = dict(key=(3, 4), value=(1, 2), gate=(3,))
    layer = {n: jnp.full((2, g, 5, *w), 8.0) for n, (g, *w) in shapes.items()}
    compute = Compute("float32", "float32", ShardingRules())
    for slot, count in ((4, 1), (1, 2)):
        new = {
            n: jnp.asarray(rng.standard_normal((2, g, count, *w)), jnp.float32)
            for n, (g, *w) in shapes.items()
        }
        heads = Heads(new["key"], new["key"], new["value"], by_key=dict(gate=new["gate"]))
        mask = Mask(jnp.zeros((2, count)), jnp.zeros((2, 5)), slot=jnp.int32(slot))
        heads, written = remember(layer, heads, mask, compute)
        for name, before in layer.items():
            expected = np.array(before)
            expected[:, :, slot : slot + count] = new[name]
            np.testing.assert_array_equal(written[name], expected)
        np.testing.assert_array_equal(heads.by_key["gate"], written["gate"])
        np.testing.assert_array_equal(heads.value, written["value"])
        np.testing.assert_array_equal(heads.query, new["key"])


def test_padding_has_no_position():
    cache = small.drawn(small.config()).empty_cache(2, 4)
    held = cache.hold(jnp.array([[3], [-1]]), jnp.int32(2))
    np.testing.assert_array_equal(
        held.position, [[NEVER, NEVER, 3, NEVER], [NEVER, NEVER, NEVER, NEVER]]
    )


def test_a_cache_holds_a_group_and_not_a_head():
    model = small.drawn(small.config(num_kv_heads=2, num_layers=4, window=(None, 2)))
    caches = model.empty_cache(3, 9)
    assert [(c["key"].shape, c["value"].shape) for c in caches.layers] == [
        ((2, 3, 2, 9, 6), (2, 3, 2, 9, 5))
    ] * 2
