"""Runs a backend on each shard of batch and heads, as if there were no mesh."""

import dataclasses
import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from model.backends.dense import for_each_query_head
from model.compute import Compute
from model.masks import Mask

QUERIES = ("batch", "heads", "length", None)
KEYS = ("batch", "kv_heads", None, None)

# Queries, keys, values and mask of a shard to what its queries read.
Local = Callable[[Array, Array, Array, Mask], Array]


def length_is_split(compute: Compute) -> bool:
    """Returns whether a sequence is split over devices of the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in compute.rules.length) > 1


def not_whole(mask: Mask, compute: Compute) -> str | None:
    """Returns why a kernel for whole sequences cannot be used; None where it can."""
    if length_is_split(compute):
        return "it needs whole sequences on each device; set mesh.context = 1"
    return None if mask.in_order else "it reads whole sequences, and not a cache"


def on_shards(
    local: Local,
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B Gv S R"],
    mask: Mask,
    compute: Compute,
) -> Float[Array, "B H T R"]:
    """Returns what ``local`` gives for each shard; keys and values are gathered over the length.

    Args:
      local: attention on one device.
      q: queries.
      k: keys; repeated for each query head where a shard's heads would begin inside a group.
      v: values, likewise.
      mask: which key a query sees.
      compute: says how arrays are split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return local(q, k, v, mask)
    shards = math.prod(mesh.shape[axis] for axis in compute.rules.heads)
    if k.shape[1] > 1 and k.shape[1] % shards:
        k = for_each_query_head(k, q.shape[1], compute)
        if v.shape[1] > 1:
            v = for_each_query_head(v, q.shape[1], compute)
    if length_is_split(compute):
        mask = dataclasses.replace(mask, in_order=False)
    q, k, v = compute.place(q, QUERIES), compute.place(k, KEYS), compute.place(v, KEYS)
    return jax.shard_map(
        local,
        out_specs=compute.rules.spec(QUERIES, (*q.shape[:3], v.shape[3])),
        check_vma=False,
    )(q, k, v, mask)
