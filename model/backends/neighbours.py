"""Windows over a sharded sequence: queries see their own shard and the end of the one before.

Where no window is longer than a shard, keys need not go round a ring: each device is sent the last
keys of the shard before its own, as many as a window has, and any backend reads them. In the zigzag
order of tokens a shard is two pieces, which are read as two rows of a batch.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from model.masks import NEVER, Mask
from model.pattern import Pattern

# A document of which no query is: that of keys before the first token.
NONE = -(2**30)


def near(window: int | None, length: int, devices: int, zigzag: int) -> bool:
    """Returns whether a window reaches no farther than into the piece of the sequence before.

    Args:
      window: keys that a query sees, its own included; None sees all before it.
      length: of the sequence.
      devices: over which it is sharded.
      zigzag: as of ``Mask``.
    """
    return window is not None and window <= length // (devices * (2 if zigzag else 1))


def local(attend: Callable[..., Array], axis: str, devices: int) -> Callable[..., Array]:
    """Returns the attention of a shard of the sequence, for use inside ``jax.shard_map``.

    Args:
      attend: attention on one device, of queries, keys, values, mask and pattern; the keys end with
        the queries' own.
      axis: of the mesh, over which queries and keys are sharded.
      devices: along it.
    """

    def read(q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern) -> Array:
        pieces = 2 if mask.zigzag else 1

        def queries(x: Array, dim: int) -> Array:
            return jnp.concatenate(jnp.split(x, pieces, dim))

        def keys(x: Array, dim: int, missing: int | None = None) -> Array:
            own = jnp.split(x, pieces, dim)
            before = _before(own, dim, mask.window or 0, axis, devices, missing)
            both = zip(before, own, strict=True)
            return jnp.concatenate([jnp.concatenate(pair, dim) for pair in both])

        def of_rows(x: Array) -> Array:
            return jnp.broadcast_to(x, (q.shape[0], *x.shape[1:]))

        none = jnp.zeros_like(mask.query_position)
        segments = mask.query_segment, mask.key_segment
        of_query, of_key = (none if x is None else x for x in segments)
        seen = Mask(
            queries(of_rows(mask.query_position), 1),
            keys(of_rows(mask.key_position), 1, NEVER),
            queries(of_rows(of_query), 1),
            keys(of_rows(of_key), 1, NONE),
            mask.window,
        )
        part = pattern.of(lambda x: queries(of_rows(x), 2), lambda x: keys(of_rows(x), 2))
        out = attend(queries(q, 2), keys(k, 2), keys(v, 2), seen, part)
        return jnp.concatenate(jnp.split(out, pieces), 2)

    return read


def _before(
    own: Sequence[Array], dim: int, count: int, axis: str, devices: int, missing: int | None
) -> list[Array]:
    """Returns so many of the elements before each piece; before the first ``missing``, or any.

    Of 2n pieces device i has the pieces i and 2n - 1 - i: the piece before its first is the first
    of the device before, that before its second the second of the device after.
    """
    ends = [jax.lax.slice_in_dim(x, x.shape[dim] - count, None, axis=dim) for x in own]
    index = jax.lax.axis_index(axis)
    first = jax.lax.ppermute(ends[0], axis, [(i, i + 1) for i in range(devices - 1)])
    first = jnp.where(index == 0, ends[0] if missing is None else missing, first)
    if len(ends) == 1:
        return [first]
    second = jax.lax.ppermute(ends[1], axis, [(i + 1, i) for i in range(devices - 1)])
    return [first, jnp.where(index == devices - 1, ends[0], second)]
