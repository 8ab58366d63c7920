"""Attention in pieces equals the dense one, and leaves out what nobody sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.backends import dense, pieces
from model.heads import Heads
from model.masks import Mask, causal
from model.pattern import Pattern
from tests.model.attending import (
    COMPUTE,
    KINDS,
    LENGTH,
    both,
    check_near,
    check_on_a_mesh,
    drawn,
    of_dense,
)


@pytest.mark.parametrize(
    ("block", "most", "cache"),
    [(4, 4, 2**22), (4, 2, 300), (2, 8, 2**22), (64, 4, 2**22)],
    ids=["queries cut", "rows cut too", "small blocks", "one piece"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_dense(monkeypatch, kind, block, most, cache):
    monkeypatch.setattr(pieces, "BLOCK", block)
    monkeypatch.setattr(pieces, "MOST_BLOCKS", most)
    monkeypatch.setattr(pieces, "CACHE", cache)
    arrays, mask, pattern = drawn(**KINDS[kind])
    found = both(pieces.attend, *arrays, mask, pattern)
    check_near(found, of_dense(kind))


@pytest.mark.parametrize("sizes", [dict(heads=4, context=2), dict(data=2, heads=4)])
@pytest.mark.parametrize("kind", ["plain", "multi-query", "full value map", "all"])
def test_on_a_mesh_it_is_the_same(monkeypatch, kind, sizes):
    monkeypatch.setattr(pieces, "BLOCK", 3)
    check_on_a_mesh(pieces.attend, kind, sizes)


def test_queries_that_stand_anywhere_read_a_cache(monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK", 1)
    (q, k, v, _), _, _ = drawn()
    mask = Mask(jnp.array([[3, 4, 5], [9, 10, 11]]), jnp.arange(LENGTH)[None])
    found = pieces.attend(Heads(q[:, :, :3], k, v), mask, Pattern(), COMPUTE)
    expected = dense.attend(Heads(q[:, :, :3], k, v), mask, Pattern(), COMPUTE)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def multiplications(attend, length, window):
    """Counts those of scores and reads."""
    shape = jax.ShapeDtypeStruct((1, 2, length, 32), jnp.float32)
    mask = causal(length, None, COMPUTE).within(window)
    run = jax.jit(lambda q, k, v: attend(Heads(q, k, v), mask, Pattern(), COMPUTE))
    cost = run.lower(shape, shape, shape).compile().cost_analysis()
    return cost["flops"]


def test_what_nobody_sees_is_not_computed():
    whole = multiplications(dense.attend, 512, None)
    # Four blocks of 128 queries read 1, 2, 3 and 4 blocks of keys of the 16 there are.
    assert multiplications(pieces.attend, 512, None) == pytest.approx(whole * 10 / 16, rel=0.02)
    # Behind a window of 64, all but the first read 64 keys more than their own 128, less one.
    expected = whole * (128 + 3 * (128 + 63)) / (4 * 512)
    assert multiplications(pieces.attend, 512, 64) == pytest.approx(expected, rel=0.02)
