"""How queries and keys are cut in blocks, and which blocks see which."""

import dataclasses
import functools
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

    def block(self, x: Array, i: Array, axis: int) -> Array:
        """Returns block i of an axis."""
        if self.count == 1:
            return x
        return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def add(self, i: Array, x: Array, part: Array, axis: int) -> Array:
        """Adds to block i of an axis."""
        if self.count == 1:
            return x + part
        part = self.block(x, i, axis) + part
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.size, axis)

    def each(
        self, read: Callable[[Array, Any], tuple[Any, Any]], carry: Any, axis: int
    ) -> tuple[Any, Any]:
        """Calls ``read`` for each block in turn, with a state that goes from one to the next.

        Returns:
          The last state, and the results of all blocks joined along an axis.
        """
        if self.count == 1:
            return read(jnp.int32(0), carry)
        carry, parts = jax.lax.scan(lambda c, i: read(i, c), carry, jnp.arange(self.count))

        def joined(part: Array) -> Array:
            moved = jnp.moveaxis(part, 0, axis)
            return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])

        return carry, jax.tree.map(joined, parts)


def mapped(mask: Mask, queries: Callable[[Array], Array], keys: Callable[[Array], Array]) -> Mask:
    """Returns a mask of other queries and keys, which need not be in order."""
    of_queries, of_keys = mask.query_segment, mask.key_segment
    return Mask(
        queries(mask.query_position),
        keys(mask.key_position),
        None if of_queries is None else queries(of_queries),
        None if of_keys is None else keys(of_keys),
        mask.window,
    )


def seen_blocks(mask: Mask, queries: Blocks, keys: Blocks) -> Bool[Array, "q s"]:
    """Returns the pairs of blocks in which positions alone may let a query see a key."""
    low, high, positions = _positions(mask, queries, keys)
    seen = high >= positions.min((0, 2))[None]
    if mask.window is not None:
        nearest = jnp.where(positions == NEVER, -NEVER, positions).max((0, 2))
        seen &= low - nearest[None] < mask.window
    return seen


def whole_blocks(mask: Mask, queries: Blocks, keys: Blocks) -> Bool[Array, "q s"]:
    """Returns the pairs of blocks in which every query sees every key."""
    if mask.query_segment is not None:
        return jnp.zeros((queries.count, keys.count), bool)
    low, high, positions = _positions(mask, queries, keys)
    whole = low >= positions.max((0, 2))[None]
    if mask.window is not None:
        whole &= high - positions.min((0, 2))[None] < mask.window
    return whole


def _positions(
    mask: Mask, queries: Blocks, keys: Blocks
) -> tuple[Int[Array, "q 1"], Int[Array, "q 1"], Int[Array, "c s size"]]:
    """Returns the first and last position in each block of queries, and all of the keys."""
    of_queries = mask.query_position.reshape(-1, queries.count, queries.size)
    of_keys = mask.key_position.reshape(-1, keys.count, keys.size)
    return of_queries.min((0, 2))[:, None], of_queries.max((0, 2))[:, None], of_keys


def order(seen: Bool[Array, "a b"], whole: Bool[Array, "a b"]) -> Int[Array, "4 a"]:
    """Returns, for each row, where the blocks begin that it sees, and the whole ones among them.

    These begin at the second and end at the third number; the fourth is where all end. Whole
    blocks behind one that is not, as the slots of a cache may have, count as not whole.
    """
    first = seen.argmax(1)
    last = jnp.where(seen.any(1), seen.shape[1] - seen[:, ::-1].argmax(1), first)
    begin = jnp.where(whole.any(1), whole.argmax(1), last)
    after = jnp.arange(whole.shape[1])[None] > begin[:, None]
    broken = after & ~whole
    end = jnp.where(broken.any(1), broken.argmax(1), whole.shape[1])
    return jnp.stack([first, begin, jnp.minimum(end, last), last])


def go(
    ends: Int[Array, "4 a"],
    row: Array,
    add: Callable[[Array, Any, bool], Any],
    carry: Any,
    count: int,
) -> Any:
    """Takes a carry through the blocks that a row sees; whole ones need pay for no mask.

    Args:
      ends: see ``order``.
      row: of those.
      add: of a block, the carry and whether all of it is seen; returns the next carry.
      carry: the first.
      count: blocks that there are.
    """
    if count == 1:
        return add(jnp.int32(0), carry, False)
    for part, whole in enumerate((False, True, False)):
        body = functools.partial(_swapped, add, whole)
        carry = jax.lax.fori_loop(ends[part, row], ends[part + 1, row], body, carry)
    return carry


def _swapped(add: Callable, whole: bool, block: Array, carry: Any) -> Any:
    return add(block, carry, whole)
