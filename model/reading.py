"""How much of a saved step is read at once, so that a host needs little more than its shards.

Orbax reads all arrays at once, and a shard by the whole chunks that it lies in. Unless both are
bounded, each process holds all of a step that one device has saved, for a while.
"""

import math
from collections.abc import Mapping
from typing import Any

CHUNK = 1 << 25  # bytes of a chunk at most, as it is written
AT_ONCE = 1 << 28  # bytes of chunks a process reads at once, where no shard needs more


def bytes_at_once(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> int:
    """Returns how many bytes a process may read at once: enough for any one of its shards.

    Args:
      saved: Orbax' metadata of arrays, by name.
      wanted: their shapes and shardings, by name.
    """
    return max(AT_ONCE, 1 + max(_chunk_bytes(saved[name], wanted[name]) for name in wanted))


def _chunk_bytes(saved: Any, wanted: Any) -> int:
    """Returns the bytes of the chunks that a shard may lie in."""
    shape = tuple(saved.shape)
    chunk = tuple(getattr(saved.storage_metadata, "chunk_shape", None) or shape)
    shard = wanted.sharding.shard_shape(wanted.shape)
    if len(shard) != len(shape):  # the key of a random generator, stored as numbers
        shard = shape
    sizes = [
        min(-(-of_shard // size) + 1, -(-whole // size)) * size
        for whole, of_shard, size in zip(shape, shard, chunk, strict=True)
    ]
    return math.prod(sizes) * saved.dtype.itemsize
