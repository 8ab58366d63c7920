"""How attention meets a sequence that is sharded: which of two ways sends less over the mesh.

"all_to_all": each device gives its part of the sequence for the whole of it, of fewer heads, and
takes the parts back (Jacobs et al. 2023, "DeepSpeed Ulysses"); any backend then reads whole
sequences. "ring": queries stay and keys go round (``backends.ring``). Both are exact, and what a
device holds falls as devices grow.
"""

import math

import jax

from model.axes import ShardingRules


def shards(rules: ShardingRules) -> int:
    """Returns over how many devices of the mesh that is set a sequence is sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in rules.length)


def way(
    rules: ShardingRules, heads: int, keys: tuple[int, int], values: tuple[int, int], width: int
) -> str:
    """Returns "all_to_all" or "ring", or "whole" where no sequence is sharded.

    A device sends, of each token that it has and in elements, ``(q + k + v + out) (n - 1) / n``
    for the exchange over n devices, and ``(k + v) (n - 1)`` around the ring; backward the same
    again, with the gradients of each. Keys of fewer groups than the exchange has shards are sent
    for each query head.

    Args:
      rules: whose ``context_attention`` is the user's word, "auto" for none.
      heads: of queries, H.
      keys: groups and width of keys, (G, K).
      values: groups and width of values, (Gv, R).
      width: of queries, K.
    """
    devices = shards(rules)
    if devices == 1:
        return "whole"
    mesh = jax.sharding.get_abstract_mesh()
    split = math.prod(mesh.shape.get(axis, 1) for axis in rules.heads)
    # One value for all heads, of a full value map, would be sent whole to each.
    possible = heads % (split * devices) == 0 and values[0] > 1
    if rules.context_attention == "ring" or not possible:
        return "ring"

    def spread(groups: int) -> int:
        return groups if groups % (split * devices) == 0 else heads

    exchanged = heads * (width + values[1]) + spread(keys[0]) * keys[1]
    exchanged += spread(values[0]) * values[1]
    around = keys[0] * keys[1] + values[0] * values[1]
    cheaper = exchanged <= around * devices
    return "all_to_all" if rules.context_attention == "all_to_all" or cheaper else "ring"
