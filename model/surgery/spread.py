"""A function of whole rows, heads or maps, computed by all devices, each for its share."""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from model.axes import axes_of, spec_of

# The axes over which parameters lie; along the others all devices compute the same.
_ORDER = ("heads", "fsdp")


def spread(function: Callable[..., tuple], pattern: str, *arrays: Array) -> list[Array]:
    """Returns ``function(*arrays)``, where devices share out the dimensions that it does not mix.

    The mesh is the one that is set. Along an axis that divides none of these dimensions all
    compute the same, as they do along those that split no parameter.

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
    over: dict[str, tuple[str, ...]] = dict.fromkeys(lengths, ())

    def give(axis: str, label: str) -> None:
        """Splits what a letter stands for over a mesh axis that is free and divides it."""
        axes = (*over[label], axis)
        free = sizes[axis] > 1 and all(axis not in taken for taken in over.values())
        if free and lengths[label] % math.prod(sizes[a] for a in axes) == 0:
            over[label] = axes

    sizes = jax.sharding.get_abstract_mesh().shape
    for labels, array in zip(inward, arrays, strict=True):  # as they lie, which moves the least
        for label, part in zip(labels, spec_of(array) or (), strict=False):
            for axis in axes_of(part) if label != "_" else ():
                give(axis, label)
    for axis in _ORDER:
        for label in over:
            give(axis, label)
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
