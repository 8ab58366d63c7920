"""Attention in blocks equals the dense one, values and gradients, wherever it is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.axes import ShardingRules, make_mesh
from model.backends import blockwise, dense
from model.compute import Compute
from model.masks import Mask, causal
from model.transformer import Transformer
from tests.model import small

COMPUTE = Compute("float32", "float32", ShardingRules())
BATCH, LENGTH, HEADS, WIDTH, RANK = 2, 13, 4, 6, 5

KINDS = {
    "plain": {},
    "grouped": dict(groups=2),
    "multi-query": dict(groups=1),
    "full value map": dict(groups=2, value_groups=1, rank=9),
    "windowed": dict(window=5),
    "a window of one": dict(window=1),
    "capped": dict(cap=0.7),
    "documents": dict(segments=True),
    "all": dict(groups=2, window=6, cap=1.5, segments=True),
}


def drawn(groups=HEADS, value_groups=None, rank=RANK, window=None, segments=False, cap=None):
    """Returns queries, keys, values and what the gradient is given, with mask and cap."""
    rng = np.random.default_rng(0)
    shapes = [
        (BATCH, HEADS, LENGTH, WIDTH),
        (BATCH, groups, LENGTH, WIDTH),
        (BATCH, value_groups or groups, LENGTH, rank),
        (BATCH, HEADS, LENGTH, rank),
    ]
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    documents = jnp.asarray(np.sort(rng.integers(0, 3, (BATCH, LENGTH)), 1)) if segments else None
    return arrays, causal(LENGTH, documents, COMPUTE).within(window), cap


def both(attend, q, k, v, given, mask, cap, compute=COMPUTE):
    """Returns what queries read, and the gradients of queries, keys and values."""

    def run(q, k, v, given, mask):
        return value_and_gradients(attend, q, k, v, given, mask, cap, compute)

    return small.quickly(run)(q, k, v, given, mask)


def value_and_gradients(attend, q, k, v, given, mask, cap, compute=COMPUTE):
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask, cap, compute), q, k, v)
    return out, *pull(given.astype(out.dtype))


@pytest.mark.parametrize(
    ("block", "cache"),
    [(4, 0), (4, 2**22), (16, 2**22)],
    ids=["heads in turn", "heads together", "one block"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_dense(monkeypatch, kind, block, cache):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    monkeypatch.setattr(blockwise, "CACHE", cache)
    arrays, mask, cap = drawn(**KINDS[kind])
    found = both(blockwise.attend, *arrays, mask, cap)
    for own, expected in zip(found, both(dense.attend, *arrays, mask, cap), strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", ["plain", "grouped", "multi-query", "full value map", "all"])
def test_on_a_mesh_it_is_the_same(monkeypatch, kind):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    arrays, mask, cap = drawn(**KINDS[kind])
    # Thirteen tokens do not split over the context; twelve do.
    arrays = [array[:, :, :12] for array in arrays]
    expected = both(dense.attend, *arrays, cut(mask), cap)
    sizes = dict(data=1, fsdp=1, heads=4, context=2)
    with jax.set_mesh(make_mesh(sizes, jax.devices())):
        place = COMPUTE.place
        q, k, v, given = arrays
        axes = ("batch", "heads", "length", None)
        kv = ("batch", "kv_heads", "length", None)
        placed = [place(q, axes), place(k, kv), place(v, kv), place(given, axes)]
        own = cut(mask)
        own = dataclasses.replace(
            own,
            query_index=place(own.query_index, (None, "length")),
            query_segment=None
            if own.query_segment is None
            else place(own.query_segment, ("batch", "length")),
        )
        found = both(blockwise.attend, *placed, own, cap)
        for array, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.asarray(array), whole, rtol=0, atol=5e-6)


def cut(mask):
    """Returns the mask of the first twelve tokens."""
    parts = (mask.query_index, mask.key_index, mask.query_segment, mask.key_segment)
    return Mask(*(None if part is None else part[:, :12] for part in parts), mask.window)


def test_queries_that_stand_anywhere_read_a_cache(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    (q, k, v, _), _, _ = drawn()
    index = jnp.array([[3, 4, 5], [9, 10, 11]])
    mask = Mask(index, jnp.arange(LENGTH)[None])
    found = blockwise.attend(q[:, :, :3], k, v, mask, None, COMPUTE)
    expected = dense.attend(q[:, :, :3], k, v, mask, None, COMPUTE)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_only_blocks_that_are_seen_are_computed(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    (q, k, v, _), mask, cap = drawn(window=3)
    static = blockwise.Static(cap, "float32", "float32")
    first, last = blockwise._Cut(static, q, k, v, mask).key_blocks()
    # Blocks of 4 tokens (the last of 1): each sees itself and 2 tokens of the one before.
    np.testing.assert_array_equal(first, [0, 0, 1, 2])
    np.testing.assert_array_equal(last, [1, 2, 3, 4])
    first, last = blockwise._Cut(static, q, k, v, mask.within(None)).query_blocks()
    np.testing.assert_array_equal(first, [0, 1, 2, 3])
    np.testing.assert_array_equal(last, [4, 4, 4, 4])


def test_bfloat16_is_as_near_to_the_truth_as_dense(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    arrays, mask, cap = drawn(groups=2)
    truth = both(dense.attend, *arrays, mask, cap)
    narrow = dataclasses.replace(COMPUTE, dtype="bfloat16")
    rounded = [array.astype(jnp.bfloat16) for array in arrays]
    for attend in (dense.attend, blockwise.attend):
        for own, expected in zip(both(attend, *rounded, mask, cap, narrow), truth, strict=True):
            assert own.dtype == jnp.bfloat16
            assert np.abs(np.asarray(own, np.float32) - expected).max() < 0.06


@pytest.mark.parametrize(("attend", "most"), [(blockwise.attend, 2.1), (dense.attend, 4.1)])
def test_memory_grows_with_the_length(attend, most):
    def temporary(length):
        shape = jax.ShapeDtypeStruct((1, 2, length, 32), jnp.float32)
        mask = causal(length, None, COMPUTE)
        run = jax.jit(lambda q, k, v: value_and_gradients(attend, q, k, v, q, mask, None))
        return run.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    ratio = temporary(8192) / temporary(4096)
    assert ratio < most
    if attend is dense.attend:
        assert ratio > 3.5  # what the other is spared


def test_a_network_of_it_learns_alike(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 3)
    config = small.config(num_kv_heads=2, window=(None, 3), attention_backend="blockwise")
    plain = dataclasses.replace(config, attention_backend="dense")
    model, tokens = small.drawn(config), small.tokens(config)
    other = jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(lambda: Transformer(plain, jax.random.key(0)))),
        jax.tree.leaves(model),
    )
    gradient = small.quickly(jax.grad(small.cross_entropy))
    found, expected = (gradient(m, tokens, tokens) for m in (model, other))
    for own, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, whole, rtol=0, atol=2e-5)
