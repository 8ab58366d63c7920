"""Attention in blocks, on any device: memory grows with T, not with T S.

The forward pass keeps a running maximum and sum of each row (Milakov and Gimelshein 2018,
"Online normalizer calculation for softmax") and saves the logarithm of that sum; the backward
pass computes each block of the pattern again from it (Dao et al. 2022, "FlashAttention",
algorithms 1 and 4). Blocks in which no query sees a key by its place are not computed.

Limits: blocks that documents alone make empty are computed; under a remat policy that keeps
matrix products, the backward pass runs the forward one again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.axes import platform
from model.backends.shards import on_shards
from model.compute import Compute
from model.masks import NEVER, Mask

# Queries, and keys, of a block: a block of the pattern of one head is 1 MB in float32.
BLOCK = 512

# Bytes of the pattern's blocks that a CPU works on at once: they are read again soon.
CACHE = 4 * 2**20


def attend(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B Gv S R"],
    mask: Mask,
    logit_cap: float | None,
    compute: Compute,
) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))``; arguments as ``dense.attend``.

    A query that sees no key reads zero.
    """
    static = Static(logit_cap, compute.dtype, compute.accumulation_dtype)
    return on_shards(functools.partial(_in_turn, static), q, k, v, mask, compute)


@dataclasses.dataclass(frozen=True)
class Static:
    """What a call has besides arrays: the cap of its logits, the dtypes of operands and sums."""

    cap: float | None
    dtype: str
    wide: str


def _in_turn(static: Static, q: Array, k: Array, v: Array, mask: Mask) -> Array:
    """Attends with all heads at once, or on a CPU with as few as stay in its cache."""
    batch, heads, length, _ = q.shape
    groups, shared = k.shape[1], v.shape[1] == 1
    blocks = batch * heads * BLOCK**2 * jnp.dtype(static.wide).itemsize
    few = max(length, k.shape[2]) <= BLOCK or blocks <= CACHE
    if few or platform() != "cpu":
        return _attend(static, q, k, v, mask)

    def row(parts: tuple[Array, Array, Array, Mask]) -> Array:
        q, k, v, mask = parts

        def group(parts: tuple[Array, Array, Array | None]) -> Array:
            q, k, own = parts
            values = v if own is None else own[None]
            return _attend(static, q[None], k[None, None], values[None], mask)[0]

        queries = q.reshape(groups, heads // groups, *q.shape[1:])
        return jax.lax.map(group, (queries, k, None if shared else v)).reshape(*q.shape[:2], -1)

    def each(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, x.shape[1]))[:, None]

    own = _mapped(mask, each, each)
    return jax.lax.map(row, (q, k, v, own))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, q: Array, k: Array, v: Array, mask: Mask) -> Array:
    return _forward(static, q, k, v, mask)[0]


def _forward(static: Static, q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, tuple]:
    """Returns what each query reads, and what the backward pass needs."""
    cut = _Cut(static, q, k, v, mask)
    ends = cut.key_blocks()

    def read(i: Array) -> tuple[Array, Array]:
        """Returns what the queries of block i read, and the log of the sum of exp(logits)."""
        queries = cut.queries.block(cut.q, i)
        rows = queries.shape[:-1]

        def add(j: Array, carry: tuple[Array, ...], whole: bool) -> tuple[Array, ...]:
            highest, total, mixed = carry
            seen = None if whole else cut.visible(i, j)
            logits = _where(seen, cut.logits(queries, j), float(jnp.finfo(static.wide).min))
            higher = jnp.maximum(highest, logits.max(-1))
            weight = _where(seen, jnp.exp(logits - higher[..., None]), 0)
            shrink = jnp.exp(highest - higher)
            values = cut.einsum(
                "bgrts,bgsw->bgrtw", cut.rows_by_value(weight), cut.keys.block(cut.v, j)
            )
            return (
                higher,
                total * shrink + weight.sum(-1),
                mixed * shrink[..., None] + values.reshape(mixed.shape),
            )

        start = (
            jnp.full(rows, jnp.finfo(static.wide).min, static.wide),
            jnp.zeros(rows, static.wide),
            jnp.zeros((*rows, v.shape[-1]), static.wide),
        )
        highest, total, mixed = _loop(ends, i, add, start, cut.keys.count)
        total = jnp.maximum(total, jnp.finfo(static.wide).tiny)
        return (mixed / total[..., None]).astype(static.dtype), highest + jnp.log(total)

    out, log_sum = cut.queries.each(read)
    out = cut.whole(out)
    return out, (q, k, v, mask, out, log_sum)


def _backward(static: Static, kept: tuple, dout: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, log_sum = kept
    cut = _Cut(static, q, k, v, mask)
    ends = cut.query_blocks()
    # The gradient of a softmax needs the mean of its inputs' gradients: that of the output by it.
    mean = cut.grouped((dout.astype(static.wide) * out.astype(static.wide)).sum(-1))
    dout = cut.grouped(dout.astype(static.dtype))

    def read(j: Array, dq: Array) -> tuple[Array, tuple[Array, Array]]:
        """Returns the gradients of the keys and values of block j; adds its share of dq."""
        keys, values = cut.keys.block(cut.k, j), cut.keys.block(cut.v, j)
        turned_keys = keys.swapaxes(2, 3)

        def add(i: Array, carry: tuple[Array, ...], whole: bool) -> tuple[Array, ...]:
            dq, dkeys, dvalues = carry
            queries, given = cut.queries.block(cut.q, i), cut.queries.block(dout, i)
            # Transposed, [B G S r T], for keys and values need sums over queries, and a CPU is
            # slow to sum over the first axis of what it multiplies.
            logits = cut.capped(cut.einsum("bgsk,bgrtk->bgsrt", keys, queries))
            seen = None if whole else jnp.moveaxis(cut.visible(i, j), -1, 2)
            weight = jnp.exp(logits - cut.queries.block(log_sum, i)[:, :, None])
            weight = _where(seen, weight, 0)
            by_value = cut.rows_by_value(given)
            flat = cut.columns_by_value(weight)
            dvalues += cut.einsum("bgsrt,bgrtw->bgsw", flat, by_value)
            change = cut.einsum("bgsw,bgrtw->bgsrt", values, by_value)
            change = cut.columns_by_key(change, weight.shape)
            change = weight * (change - cut.queries.block(mean, i)[:, :, None])
            if static.cap is not None:
                change = change * (1 - jnp.square(logits / static.cap))
            change = change.astype(static.dtype)
            dkeys += cut.einsum("bgsrt,bgrtk->bgsk", change, queries)
            # The queries' too, so that the small keys are turned and not the block.
            own = cut.einsum("bgks,bgsrt->bgkrt", turned_keys, change)
            return cut.queries.add(dq, i, own, axis=4), dkeys, dvalues

        start = (dq, jnp.zeros(keys.shape, static.wide), jnp.zeros(values.shape, static.wide))
        dq, dkeys, dvalues = _loop(ends, j, add, start, cut.queries.count)
        return dq, (dkeys.astype(k.dtype), dvalues.astype(v.dtype))

    dq = jnp.zeros(jnp.moveaxis(cut.q, -1, 2).shape, static.wide)
    dq, (dk, dv) = cut.keys.each_with(read, dq)
    dq = cut.whole(jnp.moveaxis(dq, 2, -1) * cut.scale).astype(q.dtype)
    return dq, dk[:, :, : k.shape[2]], dv[:, :, : v.shape[2]], None


_attend.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How an axis of some length is cut into equal blocks; the last may be padded."""

    length: int
    axis: int

    @property
    def count(self) -> int:
        return -(-self.length // BLOCK)

    @property
    def size(self) -> int:
        return -(-self.length // self.count)

    def pad(self, x: Array, axis: int, value: int | None = 0) -> Array:
        """Pads to whole blocks with a value, or with the last one there is when None."""
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, self.count * self.size - self.length)
        if value is None:
            return jnp.pad(x, widths, mode="edge")
        return jnp.pad(x, widths, constant_values=value)

    def block(self, x: Array, i: Array, axis: int | None = None) -> Array:
        axis = self.axis if axis is None else axis
        if self.count == 1:
            return x
        return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def add(self, x: Array, i: Array, part: Array, axis: int) -> Array:
        if self.count == 1:
            return x + part
        part = self.block(x, i, axis) + part
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.size, axis)

    def each(self, read: Callable[[Array], Any]) -> Any:
        """Returns the results of all blocks, joined along the axis."""
        return self.each_with(lambda i, none: (none, read(i)), None)[1]

    def each_with(self, read: Callable[[Array, Any], tuple[Any, Any]], carry: Any) -> Any:
        """Does so with a state that goes from block to block; returns it too."""
        if self.count == 1:
            return read(jnp.int32(0), carry)
        carry, parts = jax.lax.scan(lambda c, i: read(i, c), carry, jnp.arange(self.count))

        def joined(part: Array) -> Array:
            moved = jnp.moveaxis(part, 0, self.axis)
            shape = moved.shape
            merged = (*shape[: self.axis], -1, *shape[self.axis + 2 :])
            return moved.reshape(merged)

        return carry, jax.tree.map(joined, parts)


class _Cut:
    """The arrays of a call, padded to whole blocks: queries as [B, G, r, T, K] with r = H / G."""

    def __init__(self, static: Static, q: Array, k: Array, v: Array, mask: Mask):
        self.static, self.window = static, mask.window
        self.heads, self.groups, self.value_groups = q.shape[1], k.shape[1], v.shape[1]
        self.queries, self.keys = _Blocks(q.shape[2], 3), _Blocks(k.shape[2], 2)
        self.scale = q.shape[-1] ** -0.5
        self.q = self.grouped(q * jnp.asarray(self.scale, q.dtype))
        self.k, self.v = self.keys.pad(k, 2), self.keys.pad(v, 2)

        self.mask = _mapped(
            mask,
            lambda x: self.queries.pad(x, 1, None),
            lambda x: self.keys.pad(x, 1, None),
        )
        self.mask = dataclasses.replace(
            self.mask, key_index=self.keys.pad(mask.key_index, 1, NEVER)
        )

    def grouped(self, x: Array) -> Array:
        """Cuts the axis of heads in two, [B, G, r, T, ...], and pads T."""
        shape = (x.shape[0], self.groups, self.heads // self.groups, *x.shape[2:])
        return self.queries.pad(x.reshape(shape), 3)

    def whole(self, x: Array) -> Array:
        """Undoes ``grouped``."""
        x = x.reshape(x.shape[0], self.heads, *x.shape[3:])
        return x[:, :, : self.queries.length]

    # Values may have other groups than keys: one for all heads, with a full value map.
    def rows_by_value(self, x: Array) -> Array:
        """Groups [B, G, r, T, ...] as the values are, in the type of operands."""
        x = x.astype(self.static.dtype)
        return x.reshape(x.shape[0], self.value_groups, -1, *x.shape[3:])

    def columns_by_value(self, x: Array) -> Array:
        """Groups [B, G, S, r, T] as the values are, in the type of operands."""
        x = x.astype(self.static.dtype)
        if self.value_groups == self.groups:
            return x
        return jnp.moveaxis(x, 2, 1).reshape(x.shape[0], 1, x.shape[2], -1, x.shape[4])

    def columns_by_key(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Undoes ``columns_by_value``, back to [B, G, S, r, T]."""
        if self.value_groups == self.groups:
            return x
        moved = (shape[0], shape[2], shape[1], *shape[3:])
        return jnp.moveaxis(x.reshape(moved), 1, 2)

    def einsum(self, subscripts: str, x: Array, y: Array) -> Array:
        return jnp.einsum(subscripts, x, y, preferred_element_type=self.static.wide)

    def logits(self, queries: Array, j: Array) -> Array:
        return self.capped(self.einsum("bgrtk,bgsk->bgrts", queries, self.keys.block(self.k, j)))

    def capped(self, logits: Array) -> Array:
        cap = self.static.cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def visible(self, i: Array, j: Array) -> Bool[Array, "b 1 1 T S"]:
        """Returns where the queries of block i see the keys of block j."""
        block = _mapped(
            self.mask,
            lambda x: self.queries.block(x, i, 1),
            lambda x: self.keys.block(x, j, 1),
        )
        return block.visible()[:, :, None]

    def key_blocks(self) -> Int[Array, "4 q"]:
        """Returns, for each block of queries, the blocks of keys it sees: see ``_ends``."""
        return _ends(self._seen(), self._whole())

    def query_blocks(self) -> Int[Array, "4 s"]:
        """Returns, for each block of keys, the blocks of queries that see it: see ``_ends``."""
        return _ends(self._seen().T, self._whole().T)

    def _places(self) -> tuple[Int[Array, "q 1"], Int[Array, "q 1"], Int[Array, "c s size"]]:
        """Returns the first and last place in each block of queries, and all of the keys."""
        places = self.mask.query_index.reshape(-1, self.queries.count, self.queries.size)
        keys = self.mask.key_index.reshape(-1, self.keys.count, self.keys.size)
        return places.min((0, 2))[:, None], places.max((0, 2))[:, None], keys

    def _seen(self) -> Bool[Array, "q s"]:
        """Returns the pairs of blocks in which places alone let a query see a key."""
        low, high, keys = self._places()
        seen = high >= keys.min((0, 2))[None]
        if self.window is not None:
            nearest = jnp.where(keys == NEVER, -NEVER, keys).max((0, 2))
            seen &= low - nearest[None] < self.window
        return seen

    def _whole(self) -> Bool[Array, "q s"]:
        """Returns the pairs of blocks in which every query sees every key."""
        if self.mask.query_segment is not None:
            return jnp.zeros((self.queries.count, self.keys.count), bool)
        low, high, keys = self._places()
        whole = low >= keys.max((0, 2))[None]
        if self.window is not None:
            whole &= high - keys.min((0, 2))[None] < self.window
        return whole


def _mapped(mask: Mask, queries: Callable[[Array], Array], keys: Callable[[Array], Array]) -> Mask:
    """Returns a mask of other queries and keys."""
    of_queries, of_keys = mask.query_segment, mask.key_segment
    return Mask(
        queries(mask.query_index),
        keys(mask.key_index),
        None if of_queries is None else queries(of_queries),
        None if of_keys is None else keys(of_keys),
        mask.window,
    )


def _ends(seen: Bool[Array, "a b"], whole: Bool[Array, "a b"]) -> Int[Array, "4 a"]:
    """Returns where the seen blocks of each row begin, the whole ones begin and end, all end."""
    first, last = _range(seen)
    begin, end = _range(whole)
    none = begin == end
    return jnp.stack([first, jnp.where(none, last, begin), jnp.where(none, last, end), last])


def _range(chosen: Bool[Array, "a b"]) -> tuple[Int[Array, "a"], Int[Array, "a"]]:
    first = chosen.argmax(1)
    last = chosen.shape[1] - chosen[:, ::-1].argmax(1)
    return first, jnp.where(chosen.any(1), last, first)


def _where(seen: Array | None, x: Array, other: float | int) -> Array:
    return x if seen is None else jnp.where(seen, x, other)


def _loop(ends: Int[Array, "4 a"], row: Array, add: Callable, start: Any, count: int) -> Any:
    """Adds the blocks that a row sees; only those that are not seen whole pay for the mask."""
    if count == 1:
        return add(jnp.int32(0), start, False)
    carry = start
    for part, whole in enumerate((False, True, False)):
        body = functools.partial(add, whole=whole)
        carry = jax.lax.fori_loop(ends[part, row], ends[part + 1, row], body, carry)
    return carry
