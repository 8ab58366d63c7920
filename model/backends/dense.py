"""The plain backend: the whole attention pattern in memory, on any device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model.compute import Compute
from model.masks import Mask

SCORES = ("batch", "heads", "length", None)


def attend(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B Gv S R"],
    mask: Mask,
    logit_cap: float | None,
    compute: Compute,
) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))`` (Vaswani et al. 2017, eq. 1).

    Memory and time grow with T S.

    Args:
      q: queries.
      k: keys; query head h reads key head ``h // (H / G)``.
      v: values; grouped likewise, one for all heads when Gv is 1.
      mask: which key a query sees.
      logit_cap: logits become ``cap * tanh(logit / cap)`` before the mask; None leaves them.
      compute: the arithmetic; the softmax is in its accumulation dtype.
    """
    pattern = attention_pattern(q, k, mask, logit_cap, compute)
    v = for_each_query_head(v, q.shape[1], compute)
    return compute.einsum("bhts,bhsr->bhtr", pattern, v, axes=SCORES)


def attention_pattern(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B G S K"],
    mask: Mask,
    logit_cap: float | None,
    compute: Compute,
) -> Float[Array, "B H T S"]:
    """Returns the attention pattern A; each row sums to 1. Arguments as of ``attend``."""
    k = for_each_query_head(k, q.shape[1], compute)
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    wide = compute.accumulation_dtype
    logits = compute.einsum("bhtk,bhsk->bhts", q, k, axes=SCORES, dtype=wide)
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    logits = jnp.where(mask.visible(), logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1)


def for_each_query_head(
    x: Float[Array, "B G S W"], heads: int, compute: Compute
) -> Float[Array, "B H S W"]:
    """Repeats grouped keys or values so that each query head has its own.

    All S places are gathered where the sequence is split: a query may see any of them.
    """
    batch, groups, length, width = x.shape
    x = compute.place(x, ("batch", "kv_heads", None, None))
    if groups == heads:
        return x
    spread = jnp.broadcast_to(x[:, :, None], (batch, groups, heads // groups, length, width))
    merged = spread.reshape(batch, heads, length, width)
    return compute.place(merged, ("batch", "heads", None, None))
