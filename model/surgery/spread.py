"""A function of whole rows, heads or maps, computed by all devices, each for its share."""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

# Which mesh axis is given away first: parameters lie over the first two anyway.
_ORDER = ("heads", "fsdp", "context", "data")


def spread(function: Callable[..., tuple], pattern: str, *arrays: Array) -> list[Array]:
    """Returns ``function(*arrays)``, where devices share out the dimensions that it does not mix.

    The mesh is the one that is set. A mesh axis that divides none of these dimensions has the
    same computed all along it.

    Args:
      function: of arrays that are whole along "_"; it returns a tuple.
      pattern: a character a dimension, as "_g_,g__->_g_,+": "_" is whole; a letter may be split,
        wherever it stands alike, and its lengths may be multiples of each other; the result "+" is
        a scalar that is summed over all shares.
      arrays: of any sharding.
    """
    inward, outward = (side.split(",") for side in pattern.split("->"))
    lengths: dict[str, int] = {}
    for labels, array in zip(inward, arrays, strict=True):
        for label, length in zip(labels, array.shape, strict=True):
            if label != "_":
                lengths[label] = math.gcd(lengths.get(label, 0), length)
    sizes = jax.sharding.get_abstract_mesh().shape
    over: dict[str, tuple[str, ...]] = dict.fromkeys(lengths, ())
    for axis in _ORDER:
        for label, axes in over.items():
            shards = math.prod(sizes[a] for a in (*axes, axis))
            if sizes[axis] > 1 and lengths[label] % shards == 0:
                over[label] = (*axes, axis)
                break
    used = tuple(axis for axes in over.values() for axis in axes)

    def spec(labels: str) -> PartitionSpec:
        if labels == "+":
            return PartitionSpec()
        return PartitionSpec(*(over.get(label) or None for label in labels))

    def share(*arrays: Array) -> tuple:
        results = function(*arrays)
        summed = zip(outward, results, strict=True)
        return tuple(jax.lax.psum(x, used) if labels == "+" else x for labels, x in summed)

    ins, outs = tuple(map(spec, inward)), tuple(map(spec, outward))
    placed = [jax.sharding.reshard(x, s) for x, s in zip(arrays, ins, strict=True)]
    return list(jax.shard_map(share, in_specs=ins, out_specs=outs)(*placed))
