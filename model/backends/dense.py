"""The plain backend: the whole attention pattern in memory, on any device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.axes import QUERIES
from model.backends.shards import for_each_query_head, on_shards
from model.compute import Compute
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern


def attend(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))`` (Vaswani et al. 2017, eq. 1).

    Memory and time grow with T S.

    Args:
      heads: queries, keys and values.
      mask: which key a query sees.
      pattern: what happens to the logits besides.
      compute: the arithmetic; the softmax is in its accumulation dtype.
    """

    def local(q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern) -> Array:
        return mix(softmax(logits(q, k, compute), mask, pattern), v, compute)

    return on_shards(local, heads, mask, pattern, compute)


def logits(
    q: Float[Array, "B H T K"], k: Float[Array, "B G S K"], compute: Compute
) -> Float[Array, "B H T S"]:
    """Returns ``q k^T / sqrt(K)`` in the accumulation dtype."""
    k = for_each_query_head(k, q.shape[1], compute)
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    wide = compute.accumulation_dtype
    return compute.einsum("bhtk,bhsk->bhts", q, k, axes=QUERIES, dtype=wide)


def softmax(
    logits: Float[Array, "B H T S"], mask: Mask, pattern: Pattern
) -> Float[Array, "B H T S"]:
    """Returns the attention pattern; a row sums to 1, and to less where there is a sink."""
    scores = pattern.scores(logits, mask)
    seen = pattern.seen(mask, *scores.shape[:2])
    scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    if pattern.sink is not None:
        sink = pattern.sink.astype(scores.dtype)[None, :, None, None]
        sink = jnp.broadcast_to(sink, (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : logits.shape[-1]]
    # A hook may hide every key; nothing is read then.
    return weights if pattern.visible is None else jnp.where(seen, weights, 0)


def mix(
    pattern: Float[Array, "B H T S"], v: Float[Array, "B Gv S R"], compute: Compute
) -> Float[Array, "B H T R"]:
    """Returns the values that each head reads by its pattern."""
    v = for_each_query_head(v, pattern.shape[1], compute)
    return compute.einsum("bhts,bhsr->bhtr", pattern, v, axes=QUERIES)
