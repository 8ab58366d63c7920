"""Runs a backend on each shard of batch and heads, as if there were no mesh."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.axes import QUERIES, WHOLE_KEYS
from model.compute import Compute
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# Queries, keys, values, mask and pattern of a shard to what its queries read.
Local = Callable[[Array, Array, Array, Mask, Pattern], Array]


def length_is_split(compute: Compute) -> bool:
    """Returns whether a sequence is sharded over devices of the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in compute.rules.length) > 1


def for_each_query_head(
    x: Float[Array, "B G S W"], heads: int, compute: Compute
) -> Float[Array, "B H S W"]:
    """Repeats grouped keys or values so that each query head has its own.

    All S positions are gathered where the sequence is sharded: a query may see any of them.
    """
    batch, groups, length, width = x.shape
    x = compute.reshard(x, WHOLE_KEYS)
    if groups == heads:
        return x
    spread = jnp.broadcast_to(x[:, :, None], (batch, groups, heads // groups, length, width))
    merged = spread.reshape(batch, heads, length, width)
    return compute.reshard(merged, ("batch", "heads", None, None))


def on_shards(
    local: Local, heads: Heads, mask: Mask, pattern: Pattern, compute: Compute
) -> Float[Array, "B H T R"]:
    """Returns what ``local`` gives for each shard; keys and values are gathered over the length.

    Args:
      local: attention on one device.
      heads: queries, keys and values; keys and values are repeated for each query head where a
        shard's heads would begin inside a group.
      mask: which key a query sees.
      pattern: how logits become a pattern.
      compute: says how arrays are sharded.
    """
    q, k, v = heads.query, heads.key, heads.value
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return local(q, k, v, mask, pattern)
    shards = math.prod(mesh.shape[axis] for axis in compute.rules.heads)
    if k.shape[1] > 1 and k.shape[1] % shards:
        k = for_each_query_head(k, q.shape[1], compute)
        if v.shape[1] > 1:
            v = for_each_query_head(v, q.shape[1], compute)
    if length_is_split(compute):
        mask = dataclasses.replace(mask, in_order=False)
    q, k, v = compute.reshard(q, QUERIES), *(compute.reshard(x, WHOLE_KEYS) for x in (k, v))
    return jax.shard_map(
        local, out_specs=compute.rules.spec(QUERIES, (*q.shape[:3], v.shape[3])), check_vma=False
    )(q, k, v, mask, pattern.resharded(compute))
