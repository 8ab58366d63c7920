"""Attention in blocks equals the dense one, values and gradients, wherever it is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import masks
from model.backends import blocks, blockwise, dense
from model.heads import Heads
from model.masks import Mask, causal
from model.pattern import Pattern
from model.transformer import Transformer
from tests.model import small
from tests.model.attending import (
    COMPUTE,
    KINDS,
    LENGTH,
    both,
    check_near,
    check_on_a_mesh,
    drawn,
    of_dense,
    value_and_gradients,
)


@pytest.mark.parametrize("block", [4, 16], ids=["blocks", "one block"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_dense(monkeypatch, kind, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    arrays, mask, pattern = drawn(**KINDS[kind])
    found = both(blockwise.attend, *arrays, mask, pattern)
    check_near(found, of_dense(kind))


@pytest.mark.parametrize("kind", ["plain", "multi-query", "full value map", "all"])
def test_on_a_mesh_it_is_the_same(monkeypatch, kind):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    check_on_a_mesh(blockwise.attend, kind, dict(heads=4, context=2))


def test_queries_that_stand_anywhere_read_a_cache(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    (q, k, v, _), _, _ = drawn()
    index = jnp.array([[3, 4, 5], [9, 10, 11]])
    mask = Mask(index, jnp.arange(LENGTH)[None])
    found = blockwise.attend(Heads(q[:, :, :3], k, v), mask, Pattern(), COMPUTE)
    expected = dense.attend(Heads(q[:, :, :3], k, v), mask, Pattern(), COMPUTE)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_only_blocks_that_are_seen_are_computed(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    (q, k, v, _), mask, pattern = drawn(window=3)

    def ends(window, turn=False):
        seen = blockwise._Cut(COMPUTE, q, k, v, mask.within(window), pattern).seen_blocks
        return blocks.ends(seen.T if turn else seen)

    # Blocks of 4 tokens (the last of 1): each sees itself and 2 tokens of the one before.
    np.testing.assert_array_equal(ends(3), [[0, 0, 1, 2], [1, 2, 3, 4]])
    # Keys are seen by the queries of their own block, and by all later ones.
    np.testing.assert_array_equal(ends(None, turn=True), [[0, 1, 2, 3], [4, 4, 4, 4]])
    # Behind a window of 9 the token 12 sees none of 0 to 3, and the ones before some of all.
    np.testing.assert_array_equal(ends(9), [[0, 0, 0, 1], [1, 2, 3, 4]])


def test_a_score_may_be_no_number_where_nothing_is_seen(monkeypatch):
    """As the logarithm of a distance is, of keys that come after the query."""
    monkeypatch.setattr(blocks, "BLOCK", 4)

    def score(logit, query, key, head):
        return logit - jnp.log(1.0 + query.position - key.position)

    arrays, mask, _ = drawn()
    pattern = Pattern(score=score).checked(2, 4, LENGTH, LENGTH)
    found, expected = (both(a.attend, *arrays, mask, pattern) for a in (blockwise, dense))
    assert all(np.isfinite(x).all() for x in found)
    check_near(found, expected)


def test_slots_between_those_that_are_seen_may_be_hidden(monkeypatch):
    """Rows of unequal length leave gaps in a cache, and a later chunk reads around them."""
    monkeypatch.setattr(blocks, "BLOCK", 2)
    (q, k, v, _), _, _ = drawn(length=12)
    never = [masks.NEVER] * 4
    held = jnp.array([[0, 1, 2, 3, *never, 4, 5, 6, 7], [0, 1, *never, *never[:2], 2, 3, 4, 5]])
    mask = Mask(jnp.array([[5, 6, 7], [3, 4, 5]]), held)
    given = (Heads(q[:, :, :3], k, v), mask, Pattern(), COMPUTE)
    np.testing.assert_allclose(blockwise.attend(*given), dense.attend(*given), rtol=0, atol=2e-6)


def test_bfloat16_is_as_near_to_the_truth_as_dense(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    arrays, mask, pattern = drawn(groups=2)
    truth = both(dense.attend, *arrays, mask, pattern)
    narrow = dataclasses.replace(COMPUTE, dtype="bfloat16")
    rounded = [array.astype(jnp.bfloat16) for array in arrays]
    for attend in (dense.attend, blockwise.attend):
        for own, expected in zip(both(attend, *rounded, mask, pattern, narrow), truth, strict=True):
            assert own.dtype == jnp.bfloat16
            assert np.abs(np.asarray(own, np.float32) - expected).max() < 0.06


@pytest.mark.parametrize(("attend", "most"), [(blockwise.attend, 2.1), (dense.attend, 4.1)])
def test_memory_grows_with_the_length(attend, most):
    def temporary(length):
        shape = jax.ShapeDtypeStruct((1, 2, length, 32), jnp.float32)
        mask = causal(length, None, COMPUTE)
        run = jax.jit(lambda q, k, v: value_and_gradients(attend, q, k, v, q, mask, Pattern()))
        return run.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    ratio = temporary(8192) / temporary(4096)
    assert ratio < most
    if attend is dense.attend:
        assert ratio > 3.5  # what the other is spared


def test_a_network_of_it_learns_alike(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 3)
    config = small.config(num_kv_heads=2, window=(None, 3), attention_backend="blockwise")
    plain = dataclasses.replace(config, attention_backend="dense")
    model, tokens = small.drawn(config), small.tokens(config)
    other = jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(lambda: Transformer(plain, jax.random.key(0)))),
        jax.tree.leaves(model),
    )
    gradient = jax.jit(jax.grad(small.cross_entropy))
    found, expected = (gradient(m, tokens, tokens) for m in (model, other))
    for own, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, whole, rtol=0, atol=2e-5)
