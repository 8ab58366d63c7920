"""Dense attention in a few pieces that stay in a CPU's cache; for short sequences.

Queries are cut in blocks that read only keys they may see, rows of the batch in groups; the
pieces stand one after the other in the program, without a loop.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.backends import dense
from model.backends.shards import on_shards
from model.compute import Compute
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# Queries of a piece: fewer multiply slowly, more compute more of what is masked.
BLOCK = 128

# Blocks up to which the program stays short.
MOST_BLOCKS = 4

# Bytes of a piece's pattern in float32.
CACHE = 4 * 2**20


def attend(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))``, as ``dense.attend`` does."""

    def local(q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern) -> Array:
        def piece(rows: slice, queries: slice) -> Array:
            keys = slice(None)
            if mask.in_order:
                first = 0 if mask.window is None else max(0, queries.start - mask.window + 1)
                keys = slice(first, queries.stop)

            def part(columns: slice, axis: int) -> Callable[[Array], Array]:
                return lambda x: jax.lax.slice_in_dim(
                    x if x.shape[0] == 1 else x[rows], columns.start, columns.stop, axis=axis
                )

            read = part(keys, 2)
            piece = Heads(part(queries, 2)(q), read(k), read(v))
            seen = mask.of(part(queries, 1), part(keys, 1))
            return dense.attend(piece, seen, pattern.of(part(queries, 2), read), compute)

        batch, heads, length, _ = q.shape
        wanted = min(length // BLOCK, MOST_BLOCKS)
        blocks = _parts(length, largest=math.ceil(length / max(1, wanted)))
        each = 4 * heads * blocks[0].stop * k.shape[2]
        groups = _parts(batch, largest=max(1, CACHE // each))
        return jnp.concatenate(
            [jnp.concatenate([piece(rows, block) for block in blocks], axis=2) for rows in groups]
        )

    return on_shards(local, heads, mask, pattern, compute)


def _parts(length: int, largest: int) -> list[slice]:
    """Cuts a length into as few parts as are no larger than that, of one size but for the last."""
    count = -(-length // largest)
    size = -(-length // count)
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]
