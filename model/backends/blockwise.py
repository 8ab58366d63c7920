"""Attention in blocks, on any device: memory grows with T, not with T S.

The forward pass keeps a running maximum and sum of each row (Milakov and Gimelshein 2018,
"Online normalizer calculation for softmax") and saves the logarithm of that sum; the backward
pass computes each block of the pattern again from it (Dao et al. 2022, "FlashAttention",
algorithms 1 and 4), a variant's hooks among it. Blocks in which no query sees a key by its
position are not computed.

Limits: blocks that documents or hooks alone make empty are computed; under a remat policy that
keeps matrix products, the backward pass runs the forward one again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from model.backends import blocks
from model.backends.blocks import Blocks, go, mapped, order, seen_blocks, whole_blocks
from model.backends.shards import on_shards
from model.compute import Compute
from model.devices.choice import device
from model.gradients import with_gradient
from model.masks import NEVER, Mask
from model.pattern import Pattern


def attend(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B Gv S R"],
    mask: Mask,
    pattern: Pattern,
    compute: Compute,
) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))``; arguments as ``dense.attend``.

    A query that sees no key reads zero.
    """

    def forward(*given: Any) -> tuple[Array, tuple[Array, Array]]:
        out, log_sum = _forward(compute, *given)
        return out, (out, log_sum)

    def backward(given: tuple, kept: tuple[Array, Array], dout: Array) -> tuple:
        q, k, v, mask, pattern = given
        dq, dk, dv, dpattern = _backward(compute, q, k, v, mask, pattern, *kept, dout)
        return dq, dk, dv, None, dpattern

    local = with_gradient(lambda *given: _forward(compute, *given)[0], forward, backward)
    attend_all = functools.partial(device().attend, local, blocks.BLOCK)
    return on_shards(attend_all, q, k, v, mask, pattern, compute)


def _forward(
    compute: Compute, q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern
) -> tuple[Array, Array]:
    """Returns what each query reads, and the log of the sum of exp(score), [B, G, r, T]."""
    cut = _Cut(compute, q, k, v, mask, pattern)
    wide = compute.accumulation_dtype
    least = float(jnp.finfo(wide).min)
    ends = order(*cut.seen_and_whole())

    def read(i: Array, _: None) -> tuple[None, tuple[Array, Array]]:
        queries = cut.queries.block(cut.q, i, 3)
        rows = queries.shape[:-1]

        def add(j: Array, carry: tuple[Array, ...], whole: bool) -> tuple[Array, ...]:
            highest, total, mixed = carry
            keys, values = (cut.keys.block(x, j, 2) for x in (cut.k, cut.v))
            logits = cut.scores(cut.einsum("bgrtk,bgsk->bgrts", queries, keys), i, j)
            seen = None if whole else cut.seen(i, j)
            logits = _where(seen, logits, least)
            higher = jnp.maximum(highest, logits.max(-1))
            weight = _where(seen, jnp.exp(logits - higher[..., None]), 0)
            shrink = jnp.exp(highest - higher)
            read = cut.einsum("bgrts,bgsw->bgrtw", cut.rows_by_value(weight), values)
            return (
                higher,
                total * shrink + weight.sum(-1),
                mixed * shrink[..., None] + read.reshape(mixed.shape),
            )

        mixed = jnp.zeros((*rows, v.shape[-1]), wide)
        if pattern.sink is None:
            start = jnp.full(rows, least, wide), jnp.zeros(rows, wide), mixed
        else:
            sink = pattern.sink.astype(wide).reshape(1, *rows[1:3], 1)
            start = jnp.broadcast_to(sink, rows), jnp.ones(rows, wide), mixed
        highest, total, mixed = go(ends, i, add, start, cut.keys.count)
        total = jnp.maximum(total, jnp.finfo(wide).tiny)
        return None, ((mixed / total[..., None]).astype(compute.dtype), highest + jnp.log(total))

    _, (out, log_sum) = cut.queries.each(read, None, axis=3)
    return cut.whole(out), log_sum


def _backward(
    compute: Compute,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    pattern: Pattern,
    out: Array,
    log_sum: Array,
    dout: Array,
) -> tuple[Array, Array, Array, Pattern]:
    """Returns the gradients of queries, keys, values and what the pattern has."""
    cut = _Cut(compute, q, k, v, mask, pattern)
    wide = compute.accumulation_dtype
    seen, whole = cut.seen_and_whole()
    ends = order(seen.T, whole.T)
    # The gradient of a softmax needs the mean of its inputs' gradients: that of the output by it.
    mean = cut.grouped((dout.astype(wide) * out.astype(wide)).sum(-1))
    dout = cut.grouped(dout.astype(compute.dtype))

    def read(j: Array, carry: tuple) -> tuple[tuple, tuple]:
        """Returns the gradients of the keys of block j, and adds its share to the queries'."""
        keys, values = (cut.keys.block(x, j, 2) for x in (cut.k, cut.v))
        turned_keys = keys.swapaxes(2, 3)

        def add(i: Array, carry: tuple, whole: bool) -> tuple:
            dq, dqueries, dheads, dk, dv, dkeys = carry
            queries, slopes = (cut.queries.block(x, i, 3) for x in (cut.q, dout))
            # Transposed, [B G S r T], for keys and values need sums over queries, and a CPU is
            # slow to sum over the first axis of what it multiplies.
            raw = cut.einsum("bgsk,bgrtk->bgsrt", keys, queries)
            scores, pull = cut.differentiated(raw, i, j)
            weight = jnp.exp(scores - cut.queries.block(log_sum, i, 3)[:, :, None])
            if not whole:
                weight = jnp.where(_transposed(cut.seen(i, j)), weight, 0)
            by_value = cut.rows_by_value(slopes)
            flat = cut.columns_by_value(weight)
            dv += cut.einsum("bgsrt,bgrtw->bgsw", flat, by_value)
            change = cut.einsum("bgsw,bgrtw->bgsrt", values, by_value)
            change = cut.columns_by_key(change, weight.shape)
            change = weight * (change - cut.queries.block(mean, i, 3)[:, :, None])
            change, of_pattern = pull(change)
            change = change.astype(compute.dtype)
            dk += cut.einsum("bgsrt,bgrtk->bgsk", change, queries)
            # The queries' too, so that the small keys are turned and not the block.
            share = cut.einsum("bgks,bgsrt->bgkrt", turned_keys, change)
            dq = cut.queries.add(i, dq, share, axis=4)
            if of_pattern is not None:
                at_block = functools.partial(cut.queries.add, i, axis=2)
                dqueries = _plus(dqueries, of_pattern.query, at_block)
                dheads, dkeys = _plus(dheads, of_pattern.head), _plus(dkeys, of_pattern.key)
            return dq, dqueries, dheads, dk, dv, dkeys

        zeros = [jnp.zeros(x.shape, wide) for x in (keys, values)]
        dkeys = {n: jnp.zeros_like(cut.keys.block(x, j, 2)) for n, x in cut.pattern.key.items()}
        *carry, dk, dv, dkeys = go(ends, j, add, (*carry, *zeros, dkeys), cut.queries.count)
        return tuple(carry), (dk.astype(k.dtype), dv.astype(v.dtype), dkeys)

    dq = jnp.zeros(jnp.moveaxis(cut.q, -1, 2).shape, wide)
    of_pattern = [jax.tree.map(jnp.zeros_like, x) for x in (cut.pattern.query, cut.pattern.head)]
    (dq, dqueries, dheads), (dk, dv, dkeys) = cut.keys.each(read, (dq, *of_pattern), axis=2)
    dq = cut.whole(jnp.moveaxis(dq, 2, -1) * cut.scale).astype(q.dtype)
    dsink = None
    if pattern.sink is not None:
        chance = jnp.exp(pattern.sink.astype(wide).reshape(1, *log_sum.shape[1:3], 1) - log_sum)
        dsink = -(chance * mean).sum((0, 3)).reshape(-1).astype(pattern.sink.dtype)
    dpattern = dataclasses.replace(
        pattern,
        query={n: x[:, :, : q.shape[2]] for n, x in dqueries.items()},
        key={n: x[:, :, : k.shape[2]] for n, x in dkeys.items()},
        head=dheads,
        sink=dsink,
    )
    return dq, dk[:, :, : k.shape[2]], dv[:, :, : v.shape[2]], dpattern


def _transposed(x: Array) -> Array:
    """Turns [B, G, r, T, S] to [B, G, S, r, T]."""
    return jnp.moveaxis(x, -1, 2)


def _where(seen: Array | None, x: Array, other: float | int) -> Array:
    return x if seen is None else jnp.where(seen, x, other)


def _plus(
    sums: dict[str, Array], more: dict[str, Array], add: Callable[..., Array] = jnp.add
) -> dict[str, Array]:
    """Adds gradients by name; integers have none."""
    moved = {n: add(sums[n], x) for n, x in more.items() if x.dtype != jax.dtypes.float0}
    return {**sums, **moved}


class _Cut:
    """The arrays of a call, padded to whole blocks: queries as [B, G, r, T, K] with r = H / G."""

    def __init__(
        self, compute: Compute, q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern
    ):
        self.compute = compute
        self.heads, self.groups, self.value_groups = q.shape[1], k.shape[1], v.shape[1]
        self.queries, self.keys = Blocks(q.shape[2]), Blocks(k.shape[2])
        self.scale = q.shape[-1] ** -0.5
        self.q = self.grouped(q * jnp.asarray(self.scale, q.dtype))
        self.k, self.v = self.keys.pad(k, 2), self.keys.pad(v, 2)
        padded = mapped(
            mask, lambda x: self.queries.pad(x, 1, None), lambda x: self.keys.pad(x, 1, None)
        )
        positions = self.keys.pad(mask.key_position, 1, NEVER)
        self.mask = dataclasses.replace(padded, key_position=positions)
        self.pattern = dataclasses.replace(
            pattern,
            query={n: self.queries.pad(x, 2, None) for n, x in pattern.query.items()},
            key={n: self.keys.pad(x, 2, None) for n, x in pattern.key.items()},
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
        x = x.astype(self.compute.dtype)
        return x.reshape(x.shape[0], self.value_groups, -1, *x.shape[3:])

    def columns_by_value(self, x: Array) -> Array:
        """Groups [B, G, S, r, T] as the values are, in the type of operands."""
        x = x.astype(self.compute.dtype)
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
        wide = self.compute.accumulation_dtype
        return jnp.einsum(subscripts, x, y, preferred_element_type=wide)

    def scores(
        self, logits: Float[Array, "B G r T S"], i: Array, j: Array
    ) -> Float[Array, "B G r T S"]:
        """Returns the scores of the queries of block i and the keys of block j."""
        merged = logits.reshape(logits.shape[0], self.heads, *logits.shape[3:])
        return self._pattern(i, j).scores(merged, self._mask(i, j)).reshape(logits.shape)

    def differentiated(
        self, logits: Float[Array, "B G S r T"], i: Array, j: Array
    ) -> tuple[Array, Callable[[Array], tuple[Array, Pattern | None]]]:
        """Returns the scores, and what makes gradients of logits and pattern of theirs."""
        pattern, mask = self._pattern(i, j), self._mask(i, j)
        if pattern.score is None and pattern.cap is None:
            return logits, lambda change: (change, None)

        def scores(logits: Array, pattern: Pattern) -> Array:
            if pattern.score is None:
                return pattern.scores(logits, mask)
            turned = jnp.moveaxis(logits, 2, -1)
            merged = turned.reshape(turned.shape[0], self.heads, *turned.shape[3:])
            return _transposed(pattern.scores(merged, mask).reshape(turned.shape))

        return jax.vjp(scores, logits, pattern)

    def seen(self, i: Array, j: Array) -> Bool[Array, "b g r T S"]:
        """Returns where the queries of block i see the keys of block j; b, g and r may be 1."""
        seen = self._pattern(i, j).seen(self._mask(i, j), self.q.shape[0], self.heads)
        if seen.shape[1] == 1:
            return seen[:, :, None]
        return seen.reshape(seen.shape[0], self.groups, -1, *seen.shape[2:])

    def seen_and_whole(self) -> tuple[Bool[Array, "q s"], Bool[Array, "q s"]]:
        """Returns the pairs of blocks that see each other at all, and wholly."""
        whole = whole_blocks(self.mask, self.queries, self.keys)
        return seen_blocks(self.mask, self.queries, self.keys), whole & (
            self.pattern.visible is None
        )

    def _mask(self, i: Array, j: Array) -> Mask:
        return mapped(
            self.mask,
            lambda x: self.queries.block(x, i, 1),
            lambda x: self.keys.block(x, j, 1),
        )

    def _pattern(self, i: Array, j: Array) -> Pattern:
        return dataclasses.replace(
            self.pattern,
            query={n: self.queries.block(x, i, 2) for n, x in self.pattern.query.items()},
            key={n: self.keys.block(x, j, 2) for n, x in self.pattern.key.items()},
        )
