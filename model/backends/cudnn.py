"""cuDNN's fused attention for NVIDIA GPUs, through ``jax.nn.dot_product_attention``.

Its program has been made and read, but not run: no GPU was at hand.
"""

import jax
from jaxtyping import Array, Float

from model.axes import platform
from model.backends.shards import on_shards
from model.backends.whole import not_whole, without_forward_mode
from model.compute import Compute
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# The most that a head's keys and values may have (cuDNN frontend, "Attention", limitations).
WIDEST = 128


def refusal(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> str | None:
    """Returns why these arguments of ``attend`` cannot be computed here; None where they can."""
    if platform() not in ("gpu", "cuda"):
        return f"it runs on NVIDIA GPUs, and this is a {platform()}"
    if reason := not_whole(heads, mask, pattern, compute):
        return reason
    if compute.dtype != "bfloat16":
        return f"it multiplies 16 bits; set model.dtype = 'bfloat16', not {compute.dtype!r}"
    width = heads.query.shape[3]
    if heads.value.shape[1:] != heads.key.shape[1:]:
        return "keys and values must be alike; set model.value_dim = model.head_dim"
    if width > WIDEST or width % 8:
        return f"model.head_dim = {width} must be a multiple of 8 up to {WIDEST}"
    if pattern.cap is not None:
        return "it has no cap; set model.logit_cap = None"
    if pattern.sink is not None:
        return "it has no sinks; use a variant without them"
    if mask.query_segment is not None:
        return "it does not keep documents apart; set data.rows = 'stream'"
    return None


def attend(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))``; arguments as ``dense.attend``.

    Raises:
      ValueError: there is a ``refusal``.
    """
    reason = refusal(heads, mask, pattern, compute)
    if reason:
        raise ValueError(f"cudnn cannot compute this: {reason}")

    def local(q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern) -> Array:
        window = None if mask.window is None else (mask.window - 1, 0)

        def kernel(*by_length: Array) -> Array:
            return jax.nn.dot_product_attention(
                *by_length, is_causal=True, local_window_size=window, implementation="cudnn"
            )

        by_length = (x.astype(compute.dtype).swapaxes(1, 2) for x in (q, k, v))
        return without_forward_mode("cudnn", kernel)(*by_length).swapaxes(1, 2)

    return on_shards(local, heads, mask, pattern, compute)
