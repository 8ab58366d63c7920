"""Queries, keys, values and masks of every kind, and a backend's values and gradients on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.axes import ShardingRules
from model.backends import dense
from model.compute import Compute
from model.masks import Mask, causal
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


def drawn(
    groups=HEADS,
    value_groups=None,
    rank=RANK,
    window=None,
    segments=False,
    cap=None,
    length=LENGTH,
    width=WIDTH,
):
    """Returns queries, keys, values and what the gradient is given, with mask and cap."""
    rng = np.random.default_rng(0)
    shapes = [
        (BATCH, HEADS, length, width),
        (BATCH, groups, length, width),
        (BATCH, value_groups or groups, length, rank),
        (BATCH, HEADS, length, rank),
    ]
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    documents = jnp.asarray(np.sort(rng.integers(0, 3, (BATCH, length)), 1)) if segments else None
    return arrays, causal(length, documents, COMPUTE).within(window), cap


def both(attend, q, k, v, given, mask, cap, compute=COMPUTE):
    """Returns what queries read, and the gradients of queries, keys and values."""

    def run(q, k, v, given, mask):
        return value_and_gradients(attend, q, k, v, given, mask, cap, compute)

    return small.quickly(run)(q, k, v, given, mask)


def value_and_gradients(attend, q, k, v, given, mask, cap, compute=COMPUTE):
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask, cap, compute), q, k, v)
    return out, *pull(given.astype(out.dtype))


def check_on_a_mesh(attend, kind, sizes):
    """Compares with the dense backend on one device, with arrays split as sizes say."""
    arrays, mask, cap = drawn(**KINDS[kind])
    # Thirteen tokens do not split over the context; twelve do.
    arrays = [array[:, :, :12] for array in arrays]
    expected = both(dense.attend, *arrays, cut(mask), cap)
    with jax.set_mesh(small.mesh(sizes)):
        place = COMPUTE.place
        q, k, v, given = arrays
        axes = ("batch", "heads", "length", None)
        kv = ("batch", "kv_heads", "length", None)
        placed = [place(q, axes), place(k, kv), place(v, kv), place(given, axes)]
        own = cut(mask)
        of_queries, of_keys = own.query_segment, own.key_segment
        own = dataclasses.replace(
            own,
            query_index=place(own.query_index, (None, "length")),
            query_segment=None if of_queries is None else place(of_queries, ("batch", "length")),
            key_segment=None if of_keys is None else place(of_keys, ("batch", None)),
        )
        found = both(attend, *placed, own, cap)
        for array, whole in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.asarray(array), whole, rtol=0, atol=5e-6)


def cut(mask):
    """Returns the mask of the first twelve tokens."""
    parts = (mask.query_index, mask.key_index, mask.query_segment, mask.key_segment)
    return Mask(
        *(None if part is None else part[:, :12] for part in parts), mask.window, mask.in_order
    )
