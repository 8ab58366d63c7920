"""JAX's Pallas kernel for TPUs, "splash": blocks of the pattern in fast memory, none in slow.

Blocks that the causal mask or the window hides are not read; documents are masked inside blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Float

from model.axes import platform
from model.backends import splash_ring
from model.backends.shards import on_shards, way
from model.backends.whole import HOOKS, not_whole, without_forward_mode
from model.compute import PRODUCT, Compute
from model.context import shards
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# Queries, and keys, of a block; shorter sequences are one block of whole lanes.
BLOCK = 512
LANES = 128

# Tests run the kernel step by step on a CPU.
INTERPRET = False


def refusal(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> str | None:
    """Returns why these arguments of ``attend`` cannot be computed here; None where they can."""
    if not INTERPRET and platform() != "tpu":
        return f"it runs on TPUs, and this is a {platform()}"
    if way(heads, mask, compute) == "ring":
        reason = _not_round(heads, mask, pattern, compute)
    else:
        reason = not_whole(heads, mask, pattern, compute)
    if reason:
        return reason
    if heads.value.shape[1] != heads.key.shape[1]:
        return "it reads a value for each key; set model.value_map = 'factored'"
    return None


def _not_round(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> str | None:
    """Returns why the keys cannot go round in a ring; None where they can."""
    length = heads.query.shape[2]
    devices = shards(compute.rules)
    if mask.window is not None and mask.window < length:
        return "it knows no windows where keys go round; set mesh.context_attention = 'all_to_all'"
    if mask.zigzag != devices or length % (2 * devices * LANES):
        return f"the length must be a multiple of {2 * devices * LANES}, {2 * LANES} a device"
    if pattern.score is not None or pattern.visible is not None:
        return HOOKS
    return None


def attend(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> Float[Array, "B H T R"]:
    """Returns ``A v`` with ``A = softmax(mask(q k^T / sqrt(K)))``; arguments as ``dense.attend``.

    Raises:
      ValueError: there is a ``refusal``.
    """
    reason = refusal(heads, mask, pattern, compute)
    if reason:
        raise ValueError(f"splash cannot compute this: {reason}")
    local = functools.partial(_local, compute.dtype)
    round = splash_ring.ring(compute.dtype, BLOCK, INTERPRET)
    return on_shards(local, heads, mask, pattern, compute, round)


def _local(dtype: str, q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern) -> Array:
    length = q.shape[2]
    unit = BLOCK if length > BLOCK else LANES
    padded = -(-length // unit) * unit

    def pad(x: Array, axis: int) -> Array:
        # Keys past the end are behind every query.
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, padded - length)
        return jnp.pad(x, widths)

    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q, k, v = (pad(x.astype(dtype), 2) for x in (q, k, v))
    kernel = _kernel(q.shape[1], padded, mask.window, pattern.cap)
    documents = None
    if mask.query_segment is not None and mask.key_segment is not None:
        both = (pad(segment, 1) for segment in (mask.query_segment, mask.key_segment))
        documents = splash_attention.SegmentIds(*both)
    over = (0, 0, 0, None if documents is None else 0, None)

    def rows(kernel: Any, *arrays: Any) -> Array:
        return jax.vmap(kernel, over)(*arrays)

    out = without_forward_mode("splash", rows)(kernel, q, k, v, documents, pattern.sink)
    return out[:, :, :length]


def _kernel(
    heads: int, length: int, window: int | None, logit_cap: float | None
) -> Callable[..., Any]:
    """Returns the kernel of some heads and a length that is whole blocks."""
    shape = (length, length)
    seen: splash_attention.Mask
    if window is None or window >= length:
        seen = splash_attention.CausalMask(shape)
    else:
        seen = splash_attention.LocalMask(shape, (window - 1, 0), 0)
    block = min(BLOCK, length)
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([seen] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=logit_cap,
        # A policy that keeps products keeps what the backward pass needs of this one.
        residual_checkpoint_name=PRODUCT,
        interpret=INTERPRET,
    )
