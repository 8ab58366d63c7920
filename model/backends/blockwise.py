"""Attention in blocks, on any device: memory grows with T, not with T S.

The forward pass keeps a running maximum and sum of each row (Milakov and Gimelshein 2018,
"Online normalizer calculation for softmax") and saves the logarithm of that sum; the backward
pass computes each block of the pattern again from it (Dao et al. 2022, "FlashAttention",
algorithms 1 and 4), a variant's hooks among it. Blocks in which no query sees a key by its
position are not computed.

Limits: blocks that documents or hooks alone make empty are computed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from model.backends.blocks import Blocks, ends, seen_blocks
from model.backends.ring import Ring
from model.backends.shards import on_shards
from model.compute import PRODUCT, Compute
from model.gradients import with_gradient
from model.heads import Heads
from model.masks import NEVER, Mask
from model.pattern import Pattern


def attend(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))``; arguments as ``dense.attend``.

    A query that sees no key reads zero.
    """

    def forward(*arguments: Any) -> tuple[Array, tuple[Array, Array]]:
        # A policy that keeps products keeps what the backward pass needs of this one.
        out, log_sum = checkpoint_name(_forward(compute, compute.dtype, *arguments), PRODUCT)
        return out, (out, log_sum)

    def backward(arguments: tuple, kept: tuple[Array, Array], dout: Array) -> tuple:
        q, k, v, mask, pattern = arguments
        dq, dk, dv, of_pattern = _backward(compute, q, k, v, mask, pattern, *kept, dout)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, of_pattern

    local = with_gradient(lambda *arguments: forward(*arguments)[0], forward, backward)
    wide = functools.partial(_forward, compute, compute.accumulation_dtype)
    ring = Ring(wide, functools.partial(_backward, compute))
    return on_shards(local, heads, mask, pattern, compute, ring)


def _forward(
    compute: Compute, dtype: str, q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern
) -> tuple[Array, Array]:
    """Returns what each query reads, in a type; and the log of the sum of exp(score)."""
    cut = _Cut(compute, q, k, v, mask, pattern)
    wide = compute.accumulation_dtype
    first, last = ends(cut.seen_blocks)

    def read(i: Array, _: None) -> tuple[None, tuple[Array, Array]]:
        queries = cut.queries.at(i, 3)(cut.q)
        rows = queries.shape[:-1]

        def add(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            highest, total, mixed = carry
            keys, values = map(cut.keys.at(j, 2), (cut.k, cut.v))
            scores = cut.scores(cut.einsum("bgrtk,bgsk->bgrts", queries, keys), *cut.at(i, j))
            higher = jnp.maximum(highest, scores.max(-1))
            weight = jnp.exp(scores - higher[..., None])
            shrink = jnp.exp(highest - higher)
            read = cut.einsum("bgrts,bgsw->bgrtw", weight, values)
            total = total * shrink + weight.sum(-1)
            return higher, total, mixed * shrink[..., None] + read

        mixed = jnp.zeros((*rows, v.shape[-1]), wide)
        if pattern.sink is None:
            start = jnp.full(rows, cut.least / 2, wide), jnp.zeros(rows, wide), mixed
        else:
            sink = pattern.sink.astype(wide).reshape(1, *rows[1:3], 1)
            start = jnp.broadcast_to(sink, rows), jnp.ones(rows, wide), mixed
        highest, total, mixed = jax.lax.fori_loop(first[i], last[i], add, start)
        total = jnp.maximum(total, jnp.finfo(wide).tiny)
        return None, ((mixed / total[..., None]).astype(dtype), highest + jnp.log(total))

    _, (out, log_sum) = cut.queries.each(read, None, axis=3)
    return cut.whole(out), cut.whole(log_sum)


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
    """Returns the gradients of queries, keys and values, wide, and of what the pattern has."""
    cut = _Cut(compute, q, k, v, mask, pattern)
    log_sum = cut.grouped(log_sum, NEVER)  # so that what is padded weighs nothing
    wide = compute.accumulation_dtype
    first, last = ends(cut.seen_blocks.T)
    # The gradient of a softmax needs the mean of its inputs' gradients: that of the output by it.
    mean = cut.grouped((dout.astype(wide) * out.astype(wide)).sum(-1))
    dout = cut.grouped(dout.astype(compute.dtype))
    # Values may have other groups than keys: one for all heads, with a full value map.
    of_values = "bgws" if v.shape[1] == k.shape[1] else "bws"

    def turned(x: Array) -> Array:
        # A CPU is slow to sum over the first axis of what it multiplies: this one is small.
        return jnp.moveaxis(x, -1, 2)

    def read(j: Array, carry: tuple) -> tuple[tuple, tuple]:
        """Returns the gradients of the keys of block j, and adds its share to the queries'."""
        keys, values = map(cut.keys.at(j, 2), (cut.k, cut.v))

        def add(i: Array, carry: tuple) -> tuple:
            dq, dqueries, dheads, dk, dv, dkeys = carry
            of_block = cut.q, dout, log_sum[..., None], mean[..., None]
            queries, slopes, log_sums, means = map(cut.queries.at(i, 3), of_block)
            mask, pattern = cut.at(i, j)
            logits = cut.einsum("bgrtk,bgsk->bgrts", queries, keys)
            scores, pull = jax.vjp(
                lambda logits, pattern: cut.scores(logits, mask, pattern), logits, pattern
            )
            weight = jnp.exp(scores - log_sums)
            dv += cut.einsum(f"bgwrt,bgrts->{of_values}", turned(slopes), weight).reshape(dv.shape)
            change = cut.einsum("bgrtw,bgsw->bgrts", slopes, values)
            change, of_pattern = pull(weight * (change - means))
            dk += cut.einsum("bgkrt,bgrts->bgks", turned(queries), change)
            dq = cut.queries.add(i, dq, cut.einsum("bgrts,bgsk->bgrtk", change, keys), axis=3)
            dqueries = _plus(
                dqueries, of_pattern.query, lambda x, part: cut.queries.add(i, x, part, 2)
            )
            dheads, dkeys = _plus(dheads, of_pattern.head), _plus(dkeys, of_pattern.key)
            return dq, dqueries, dheads, dk, dv, dkeys

        zeros = [jnp.zeros(x.swapaxes(2, 3).shape, wide) for x in (keys, values)]
        dkeys = {n: jnp.zeros_like(cut.keys.at(j, 2)(x)) for n, x in cut.pattern.key.items()}
        *carry, dk, dv, dkeys = jax.lax.fori_loop(first[j], last[j], add, (*carry, *zeros, dkeys))
        dk, dv = dk.swapaxes(2, 3), dv.swapaxes(2, 3)
        return tuple(carry), (dk, dv, dkeys)

    of_pattern = [jax.tree.map(jnp.zeros_like, x) for x in (cut.pattern.query, cut.pattern.head)]
    start = jnp.zeros(cut.q.shape, wide), *of_pattern
    (dq, dqueries, dheads), (dk, dv, dkeys) = cut.keys.each(read, start, axis=2)
    dq = cut.whole(dq * cut.scale)
    dsink = None
    if pattern.sink is not None:
        chance = jnp.exp(pattern.sink.astype(wide).reshape(1, *log_sum.shape[1:3], 1) - log_sum)
        dsink = -(chance * mean).sum((0, 3)).reshape(-1).astype(pattern.sink.dtype)
    dpattern = dataclasses.replace(pattern, query=dqueries, key=dkeys, head=dheads, sink=dsink)
    dpattern = dpattern.of(lambda x: x[:, :, : q.shape[2]], lambda x: x[:, :, : k.shape[2]])
    return dq, dk[:, :, : k.shape[2]], dv[:, :, : v.shape[2]], dpattern


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
        self.heads, self.groups = q.shape[1], k.shape[1]
        self.queries, self.keys = Blocks(q.shape[2]), Blocks(k.shape[2])
        self.scale = q.shape[-1] ** -0.5
        # Maxima begin at half of it, and are above it even where no key is seen.
        self.least = float(jnp.finfo(compute.accumulation_dtype).min)
        self.q = self.grouped(q * jnp.asarray(self.scale, q.dtype))
        self.k, self.v = self.keys.pad(k, 2), self.keys.pad(v, 2)

        padded = mask.of(
            lambda x: self.queries.pad(x, 1, None), lambda x: self.keys.pad(x, 1, None)
        )
        positions = self.keys.pad(mask.key_position, 1, NEVER)
        self.mask = dataclasses.replace(padded, key_position=positions)
        self.pattern = pattern.of(
            lambda x: self.queries.pad(x, 2, None), lambda x: self.keys.pad(x, 2, None)
        )
        self.seen_blocks = seen_blocks(self.mask, self.queries, self.keys)

    def grouped(self, x: Array, padding: int = 0) -> Array:
        """Cuts the axis of heads in two, [B, G, r, T, ...], and pads T."""
        shape = (x.shape[0], self.groups, self.heads // self.groups, *x.shape[2:])
        return self.queries.pad(x.reshape(shape), 3, padding)

    def whole(self, x: Array) -> Array:
        """Undoes ``grouped``."""
        x = x.reshape(x.shape[0], self.heads, *x.shape[3:])
        return x[:, :, : self.queries.length]

    def einsum(self, subscripts: str, x: Array, y: Array) -> Array:
        """Multiplies in the type of operands."""
        dtype, wide = self.compute.dtype, self.compute.accumulation_dtype
        return jnp.einsum(subscripts, x.astype(dtype), y.astype(dtype), preferred_element_type=wide)

    def at(self, i: Array, j: Array) -> tuple[Mask, Pattern]:
        """Returns mask and pattern of the queries of block i and the keys of block j."""
        mask = self.mask.of(self.queries.at(i, 1), self.keys.at(j, 1))
        return mask, self.pattern.of(self.queries.at(i, 2), self.keys.at(j, 2))

    def scores(
        self, logits: Float[Array, "B G r T S"], mask: Mask, pattern: Pattern
    ) -> Float[Array, "B G r T S"]:
        """Returns the scores of a block, the least there is where a query does not see a key."""
        merged = logits.reshape(logits.shape[0], self.heads, *logits.shape[3:])
        seen, scores = pattern.seen(mask, *merged.shape[:2]), pattern.scores(merged, mask)
        if pattern.score is None:
            # Added, it costs less, and least of all in the gradient.
            return (scores + jnp.where(seen, 0.0, self.least)).reshape(logits.shape)
        # What a hook gives where nothing is seen may not be finite.
        return jnp.where(seen, scores, self.least).reshape(logits.shape)
