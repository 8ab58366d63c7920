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

from model.axes import device_kind, platform
from model.backends import splash_ring
from model.backends.shards import on_shards, way
from model.backends.whole import hooks, not_whole, without_forward_mode
from model.compute import PRODUCT, Compute
from model.context import shards
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# Queries, and keys, of a block; shorter sequences are one block of whole lanes.
BLOCK = 512
LANES = 128

# Their compiler of kernels multiplies no bfloat16.
TOO_OLD = ("TPU v2", "TPU v3")

# Tests run the kernel step by step on a CPU.
INTERPRET = False


def refusal(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> str | None:
    """Returns why these arguments of ``attend`` cannot be computed here; None where they can."""
    if not INTERPRET and platform() != "tpu":
        return f"it runs on TPUs, and this is a {platform()}"
    if device_kind().startswith(TOO_OLD):
        return f"its kernel needs a TPU v4 or a later one, and this is a {device_kind()}"
    taken = way(heads, mask, compute)
    if taken == "ring":
        reason = _not_round(heads, mask, pattern, compute)
    elif taken == "neighbours":
        reason = hooks(pattern)
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
        return "it knows no windows longer than a shard; set mesh.context_attention = 'all_to_all'"
    if mask.zigzag != devices or length % (2 * devices * LANES):
        return f"the length must be a multiple of {2 * devices * LANES}, {2 * LANES} a device"
    return hooks(pattern)


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
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    queries = _whole(length)
    keys = _whole(queries + before)  # so that what is padded sees itself

    def pad(x: Array, axis: int, size: int) -> Array:
        # Keys past the end are behind every query.
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, size - x.shape[axis])
        return jnp.pad(x, widths)

    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q, k, v = (pad(x.astype(dtype), 2, size) for x, size in ((q, queries), (k, keys), (v, keys)))
    kernel = _kernel(q.shape[1], (queries, keys), before, mask.window, pattern.cap)
    documents = None
    if mask.query_segment is not None and mask.key_segment is not None:
        documents = splash_attention.SegmentIds(
            pad(mask.query_segment, 1, queries), pad(mask.key_segment, 1, keys)
        )
    over = (0, 0, 0, None if documents is None else 0, None)

    def rows(kernel: Any, *arrays: Any) -> Array:
        return jax.vmap(kernel, over)(*arrays)

    out = without_forward_mode("splash", rows)(kernel, q, k, v, documents, pattern.sink)
    return out[:, :, :length]


def _whole(length: int) -> int:
    """Returns a length that is whole blocks."""
    unit = BLOCK if length > BLOCK else LANES
    return -(-length // unit) * unit


def _kernel(
    heads: int, shape: tuple[int, int], before: int, window: int | None, logit_cap: float | None
) -> Callable[..., Any]:
    """Returns the kernel of some heads, for queries and keys that are whole blocks.

    Query i stands at key ``before + i``.
    """
    seen: splash_attention.Mask
    if window is None or window >= shape[1]:
        seen = splash_attention.CausalMask(shape, before)
    else:
        seen = splash_attention.LocalMask(shape, (window - 1, 0), before)
    of_queries, of_keys = (min(BLOCK, size) for size in shape)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([seen] * heads),
        block_sizes=splash_ring.block_sizes(of_queries, of_keys),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=logit_cap,
        # A policy that keeps products keeps what the backward pass needs of this one.
        residual_checkpoint_name=PRODUCT,
        interpret=INTERPRET,
    )
