"""How queries and keys are cut in blocks, and which blocks see which."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from model.masks import NEVER, Mask

# Queries, and keys, of a block: a block of the pattern of one head is 1 MB in float32.
BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An axis of some length, cut into equal blocks; the last may be padded."""

    length: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.length // BLOCK)

    @property
    def size(self) -> int:
        """Length of a block."""
        return -(-self.length // self.count)

    def pad(self, x: Array, axis: int, value: int | None = 0) -> Array:
        """Pads to whole blocks with a value, or with the last one there is when None."""
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, self.count * self.size - self.length)
        if value is None:
            return jnp.pad(x, widths, mode="edge")
        return jnp.pad(x, widths, constant_values=value)

    def at(self, i: Array, axis: int) -> Callable[[Array], Array]:
        """Returns what takes block i of an axis."""
        return lambda x: jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def add(self, i: Array, x: Array, part: Array, axis: int) -> Array:
        """Adds to block i of an axis."""
        part = self.at(i, axis)(x) + part
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.size, axis)

    def each(
        self, read: Callable[[Array, Any], tuple[Any, Any]], carry: Any, axis: int
    ) -> tuple[Any, Any]:
        """Calls ``read`` for each block in turn, with a state that goes from one to the next.

        Returns:
          The last state, and the results of all blocks joined along an axis.
        """
        carry, parts = jax.lax.scan(lambda c, i: read(i, c), carry, jnp.arange(self.count))

        def joined(part: Array) -> Array:
            moved = jnp.moveaxis(part, 0, axis)
            return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])

        return carry, jax.tree.map(joined, parts)


def seen_blocks(mask: Mask, queries: Blocks, keys: Blocks) -> Bool[Array, "q s"]:
    """Returns the pairs of blocks in which positions alone may let a query see a key."""
    of_queries = mask.query_position.reshape(-1, queries.count, queries.size)
    of_keys = mask.key_position.reshape(-1, keys.count, keys.size)
    seen = of_queries.max((0, 2))[:, None] >= of_keys.min((0, 2))[None]
    if mask.window is not None:
        nearest = jnp.where(of_keys == NEVER, -NEVER, of_keys).max((0, 2))
        seen &= of_queries.min((0, 2))[:, None] - nearest[None] < mask.window
    return seen


def ends(seen: Bool[Array, "a b"]) -> Int[Array, "2 a"]:
    """Returns, for each row, where the blocks that it sees begin and where they end."""
    first = seen.argmax(1)
    last = seen.shape[1] - seen[:, ::-1].argmax(1)
    return jnp.stack([first, jnp.where(seen.any(1), last, first)])
