"""Cached decoding equals the whole forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from model.axes import ShardingRules
from model.cache import empty
from tests.model import small

KINDS = {
    "rotary": {},
    "grouped, learned, biases": dict(
        num_kv_heads=2, positions="learned", biases=True, norm="layernorm"
    ),
    "windows by turns": dict(window=(None, 3), num_layers=4, num_kv_heads=1),
    "windows by turns, unrolled": dict(window=(3, None), num_layers=4, scan_layers=False),
    "full value map": dict(value_map="full", num_kv_heads=2),
    "unrolled, query/key norm, cap": dict(scan_layers=False, query_key_norm=True, logit_cap=2.0),
    "parallel, remat": dict(parallel_blocks=True, remat="block"),
}
ROWS, LENGTH = 3, 8
decode = small.quickly(lambda model, tokens, index, cache: model.decode(tokens, index, cache))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_equals_the_forward_pass(kind):
    """Prompts of 1, 3 and 4 tokens, padded to the right; then every row goes on alone."""
    config = small.config(**KINDS[kind])
    model, tokens = small.drawn(config), small.tokens(config, ROWS, LENGTH)
    expected = small.true_logits(model, tokens)
    cache = model.empty_cache(ROWS, LENGTH + 2)

    prompts = np.array([1, 3, 4])
    padded = np.where(np.arange(4)[None] < prompts[:, None], tokens[:, :4], 7).astype(np.int32)
    index = np.broadcast_to(np.arange(4, dtype=np.int32), (ROWS, 4))
    logits, cache = decode(model, padded, index, cache)
    logits = np.asarray(logits)[..., : config.vocab_size]
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(logits[row, :prompt], expected[row, :prompt], rtol=0, atol=1e-5)

    place = prompts.astype(np.int32)
    while (place < LENGTH).any():
        # A row that has ended repeats its last token at its last place.
        here = np.minimum(place, LENGTH - 1)[:, None]
        new = np.take_along_axis(tokens, here, axis=1)
        logits, cache = decode(model, new, here, cache)
        found = np.asarray(logits)[:, 0, : config.vocab_size]
        truth = np.take_along_axis(expected, here[..., None], axis=1)[:, 0]
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5)
        place += 1


def test_decoding_token_by_token_from_nothing():
    config = small.config(window=(None, 3))
    model, tokens = small.drawn(config), small.tokens(config)
    expected = small.true_logits(model, tokens)
    cache = model.empty_cache(small.BATCH, small.LENGTH)
    for t in range(small.LENGTH):
        index = np.full((small.BATCH, 1), t, np.int32)
        logits, cache = decode(model, tokens[:, t : t + 1], index, cache)
        found = np.asarray(logits)[:, 0, : config.vocab_size]
        np.testing.assert_allclose(found, expected[:, t], rtol=0, atol=1e-5)


def test_what_a_cache_held_before_does_not_matter():
    config = small.config()
    model, tokens = small.drawn(config), small.tokens(config, length=3)
    index = np.broadcast_to(np.arange(3, dtype=np.int32), tokens.shape)
    clean = model.empty_cache(small.BATCH, 6)
    used = jax.tree.map(lambda leaf: jnp.full_like(leaf, 9.0), clean)
    np.testing.assert_array_equal(
        decode(model, tokens, index, clean)[0], decode(model, tokens, index, used)[0]
    )


def test_write_puts_each_row_at_its_places():
    rng = np.random.default_rng(0)
    cache = empty(1, (2, 3, 5, 4), (2, 1, 5, 2), "float32", ShardingRules())
    cache = jax.tree.map(lambda leaf: jnp.full_like(leaf[0], 8.0), cache)
    for index in (np.array([[1], [4]]), np.array([[0, 1], [3, 4]])):
        new = [
            jnp.asarray(rng.standard_normal((2, groups, index.shape[1], width)), jnp.float32)
            for groups, width in ((3, 4), (1, 2))
        ]
        written = cache.write(new[0], new[1], jnp.asarray(index))
        for before, values, after in zip(
            (cache.key, cache.value), new, (written.key, written.value), strict=True
        ):
            expected = np.array(before)
            for row in range(2):
                for i, place in enumerate(index[row]):
                    expected[row, :, place] = values[row, :, i]
            np.testing.assert_array_equal(after, expected)


def test_a_cache_holds_a_group_and_not_a_head():
    model = small.drawn(small.config(num_kv_heads=2, num_layers=4, window=(None, 2)))
    caches = model.empty_cache(3, 9)
    assert [(c.key.shape, c.value.shape) for c in caches] == [
        ((2, 3, 2, 9, 6), (2, 3, 2, 9, 5))
    ] * 2


def test_a_cache_past_the_learned_positions_is_refused():
    model = small.drawn(small.config(positions="learned", max_length=8))
    model.empty_cache(1, 8)
    with pytest.raises(UserError, match="9 tokens are longer than model.max_length = 8"):
        model.empty_cache(1, 9)
