"""Runs a backend on each shard of batch and heads, as if there were no mesh."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import context
from model.axes import KEYS, QUERIES, SPREAD, WHOLE_KEYS, Axes
from model.backends import neighbours, ring
from model.compute import Compute
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# Queries, keys, values, mask and pattern of a shard to what its queries read.
Local = Callable[[Array, Array, Array, Mask, Pattern], Array]


def way(heads: Heads, mask: Mask, compute: Compute) -> str:
    """Returns how attention meets the sequence: "whole", "all_to_all", "ring" or "neighbours".

    Tokens that read a cache gather its keys; what was put in the order of the ring stays there. Of
    a window no more than a shard keys are had from the neighbours, unless the user says otherwise.
    """
    q, k, v = heads.query, heads.key, heads.value
    devices = context.shards(compute.rules)
    if devices == 1 or mask.slot is not None or q.shape[2] % devices:
        return "whole"
    near = neighbours.near(mask.window, q.shape[2], devices, mask.zigzag)
    allowed = mask.in_order and compute.rules.context_attention != "all_to_all"
    if near and (mask.zigzag or allowed):
        return "neighbours"
    if mask.zigzag:
        return "ring"
    (_, groups, _, width), (_, of_values, _, rank) = k.shape, v.shape
    return context.way(compute.rules, q.shape[1], (groups, width), (of_values, rank), q.shape[3])


def for_each_query_head(
    x: Float[Array, "B G S W"], heads: int, compute: Compute, axes: Axes = WHOLE_KEYS
) -> Float[Array, "B H S W"]:
    """Repeats grouped keys or values so that each query head has its own.

    All S positions are gathered where the sequence is sharded, since a query may see any of them;
    ``axes`` may leave them sharded.
    """
    batch, groups, length, width = x.shape
    x = compute.reshard(x, axes)
    if groups == heads:
        return x
    spread = jnp.broadcast_to(x[:, :, None], (batch, groups, heads // groups, length, width))
    merged = spread.reshape(batch, heads, length, width)
    return compute.reshard(merged, (axes[0], "heads", *axes[2:]))


def on_shards(
    local: Local,
    heads: Heads,
    mask: Mask,
    pattern: Pattern,
    compute: Compute,
    round: ring.Ring | None = None,
) -> Float[Array, "B H T R"]:
    """Returns what ``local`` gives for each shard of batch and heads.

    Where the sequence is sharded, it is exchanged for heads, or keys go round, or come from the
    neighbours; a backend that has no ring gathers them.

    Args:
      local: attention on one device.
      heads: queries, keys and values; keys and values are repeated for each query head where a
        shard's heads would begin inside a group.
      mask: which key a query sees.
      pattern: how logits become a pattern.
      compute: says how arrays are sharded.
      round: how the backend attends to the keys of a turn of the ring.
    """
    q, k, v = heads.query, heads.key, heads.value
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return local(q, k, v, mask, pattern)
    taken, devices = way(heads, mask, compute), context.shards(compute.rules)
    over_heads, of_queries, of_keys = compute.rules.heads, QUERIES, WHOLE_KEYS
    if taken == "all_to_all":
        over_heads, of_queries, of_keys = compute.rules.spread_heads, SPREAD, SPREAD
    elif taken == "ring" and round is not None:
        of_keys = KEYS
        local = ring.local(round, compute.rules.length[0], devices, compute.dtype)
    elif taken == "neighbours":
        of_keys = KEYS
        local = neighbours.local(local, compute.rules.length[0], devices)
    elif devices > 1:
        mask = dataclasses.replace(mask, in_order=False)
    shards = math.prod(mesh.shape[axis] for axis in over_heads)
    if k.shape[1] > 1 and k.shape[1] % shards:
        kept = WHOLE_KEYS if of_keys is WHOLE_KEYS else KEYS
        k = for_each_query_head(k, q.shape[1], compute, kept)
        if v.shape[1] > 1:
            v = for_each_query_head(v, q.shape[1], compute, kept)
    q, k, v = compute.reshard(q, of_queries), *(compute.reshard(x, of_keys) for x in (k, v))
    if devices > 1:
        mask = mask.resharded(of_queries, of_keys, compute)
    pattern = pattern.resharded(of_queries, of_keys, compute)
    out = jax.shard_map(
        local, out_specs=compute.rules.spec(of_queries, (*q.shape[:3], v.shape[3])), check_vma=False
    )(q, k, v, mask, pattern)
    return compute.reshard(out, QUERIES)
