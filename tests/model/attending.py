"""Queries, keys, values and masks of every kind, and a backend's values and gradients on them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from model import zigzag
from model.axes import KEYS, QUERIES, TOKENS, WHOLE_KEYS, ShardingRules
from model.backends import dense
from model.backends.shards import way
from model.compute import Compute
from model.heads import Heads
from model.masks import causal
from model.pattern import Pattern
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
    "sinks": dict(groups=2, sink=True, window=6),
    "score": dict(groups=2, score=True),
    "score with all": dict(groups=1, score=True, sink=True, cap=1.5, segments=True, window=7),
    "visible": dict(visible=True),
    "score and visible, full value map": dict(
        groups=2, value_groups=1, rank=9, score=True, visible=True
    ),
}
HOOKED = [kind for kind, how in KINDS.items() if "score" in how or "visible" in how]


def score(logit, query, key, head):
    """A change that reads all that a hook is given; it has no slope at keys after the query."""
    far = jnp.log1p((query.position - key.position).astype(jnp.float32))
    moved = logit * head.heat + query.push * key.pull - head.slope * far
    return moved + head.table[key.kind] + 0.1 * head.index


def visible(query, key, head):
    """Hides keys by their kind, from some heads also the query's own."""
    return (key.kind != head.index % 2) | (query.position % 3 == 0)


def drawn(
    groups=HEADS,
    value_groups=None,
    rank=RANK,
    window=None,
    segments=False,
    cap=None,
    length=LENGTH,
    width=WIDTH,
    sink=False,
    score=False,
    visible=False,
):
    """Returns queries, keys, values and what the gradient is given, with mask and pattern."""
    rng = np.random.default_rng(0)
    shapes = [
        (BATCH, HEADS, length, width),
        (BATCH, groups, length, width),
        (BATCH, value_groups or groups, length, rank),
        (BATCH, HEADS, length, rank),
    ]
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    documents = jnp.asarray(np.sort(rng.integers(0, 3, (BATCH, length)), 1)) if segments else None
    hooks = {}
    if score or visible:

        def floats(*shape):
            return jnp.asarray(rng.standard_normal(shape), jnp.float32)

        hooks = dict(
            score=globals()["score"] if score else None,
            visible=globals()["visible"] if visible else None,
            query=dict(push=floats(BATCH, HEADS, length)),
            # One for all heads.
            key=dict(
                pull=floats(BATCH, 1, length),
                kind=jnp.asarray(rng.integers(0, 3, (BATCH, 1, length))),
            ),
            head=dict(heat=floats(HEADS), slope=floats(HEADS), table=floats(HEADS, 3)),
        )
    sinks = jnp.asarray(rng.standard_normal(HEADS), jnp.float32) if sink else None
    pattern = Pattern(cap=cap, sink=sinks, **hooks).checked(BATCH, HEADS, length, length)
    return arrays, causal(length, documents, COMPUTE).within(window), pattern


def both(attend, q, k, v, given, mask, pattern, compute=COMPUTE):
    """Returns what queries read, and the gradients of queries, keys, values and the pattern."""

    def run(q, k, v, given, mask, pattern):
        return value_and_gradients(attend, q, k, v, given, mask, pattern, compute)

    return jax.jit(run)(q, k, v, given, mask, pattern)


def value_and_gradients(attend, q, k, v, given, mask, pattern, compute=COMPUTE):
    leaves, structure = jax.tree.flatten(pattern)
    moves = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def run(q, k, v, *floats):
        whole = list(leaves)
        for i, leaf in zip(moves, floats, strict=True):
            whole[i] = leaf
        return attend(Heads(q, k, v), mask, jax.tree.unflatten(structure, whole), compute)

    out, pull = jax.vjp(run, q, k, v, *(leaves[i] for i in moves))
    return out, *pull(given.astype(out.dtype))


@functools.cache
def of_dense(kind, length=LENGTH):
    """Returns what ``both`` finds with the dense backend on one device."""
    arrays, mask, pattern = drawn(**KINDS[kind], length=length)
    return both(dense.attend, *arrays, mask, pattern)


def check_near(found, expected):
    """Compares each array to rounding of the largest sums in it."""
    for own, whole in zip(found, expected, strict=True):
        most = 1e-5 * (1 + np.abs(whole).max())
        np.testing.assert_allclose(np.asarray(own), whole, rtol=0, atol=most)


def check_on_a_mesh(attend, kind, sizes, compute=COMPUTE):
    """Compares with the dense backend on one device, with arrays sharded as sizes say."""
    # Thirteen tokens cannot be sharded over the context; twelve can.
    arrays, mask, pattern = drawn(**KINDS[kind], length=12)
    truth = of_dense(kind, 12)
    with jax.set_mesh(small.mesh(sizes)):
        reshard = COMPUTE.reshard
        q, k, v, given = arrays
        split = [reshard(q, QUERIES), reshard(k, KEYS), reshard(v, KEYS), reshard(given, QUERIES)]
        of_queries, of_keys = mask.query_segment, mask.key_segment
        own = dataclasses.replace(
            mask,
            query_position=reshard(mask.query_position, (None, "length")),
            query_segment=None if of_queries is None else reshard(of_queries, TOKENS),
            key_segment=None if of_keys is None else reshard(of_keys, ("batch", None)),
        )
        pattern = pattern.resharded(QUERIES, WHOLE_KEYS, COMPUTE)
        found = both(attend, *split, own, pattern, compute)
        check_near(found, truth)


def check_in_the_zigzag(attend, kind, compute, expected_way="ring"):
    """Compares 512 tokens, two pieces of 128 on each of two devices, with one device."""
    arrays, mask, pattern = drawn(**kind, length=512)
    truth = both(dense.attend, *arrays, mask, pattern)
    order = zigzag.order(512, 2)

    def moved(x):
        return x[..., order] if x.ndim == 2 else x[:, :, order]

    with jax.set_mesh(small.mesh(dict(heads=2, context=2))):
        mask = dataclasses.replace(mask.of(moved, moved), zigzag=2)
        q, k, v, given = (
            jax.device_put(moved(x), COMPUTE.rules.spec(QUERIES, x.shape)) for x in arrays
        )
        assert way(Heads(q, k, v), mask, compute) == expected_way
        out, dq, dk, dv, *rest = both(attend, q, k, v, given, mask, pattern, compute)
        found = (np.asarray(x)[:, :, np.argsort(order)] for x in (out, dq, dk, dv))
        check_near([*found, *rest], truth)
