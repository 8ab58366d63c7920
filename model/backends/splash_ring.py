"""Splash in a ring: the kernel attends to the keys of each turn, in the zigzag order of tokens.

A device has an early and a late piece of the sequence. Of the keys of another device, its late
queries see the early piece; and if they come from before its own, so do its early queries, else its
late queries see the late piece too: two whole squares in each turn, without a mask. Its own keys
are two triangles and a square.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jaxtyping import Array

from model.backends.ring import Ring, joined
from model.masks import Mask
from model.pattern import Pattern

Read = tuple[Array, Array]  # what queries read, wide, and the log of the sum of exp(score)


def ring(dtype: str, block: int, interpret: bool) -> Ring:
    """Returns how splash attends to the keys of a turn.

    Args:
      dtype: of the operands.
      block: queries, and keys, of a block, at most.
      interpret: step by step, on a CPU.
    """
    how = dict(block=block, interpret=interpret)
    return Ring(
        functools.partial(_forward, dtype, how),
        functools.partial(_backward, dtype, how),
    )


def _forward(
    dtype: str, how: dict, q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern
) -> Read:
    early, late = _pieces(q, k, v, mask, dtype)

    def read(causal: bool, queries: dict, keys: dict) -> Read:
        kernel = _kernel(q.shape[1], q.shape[2] // 2, causal, pattern.cap, True, **how)
        out, (log_sum,) = _by_row(kernel, queries["q"], keys["k"], keys["v"], queries, keys)
        return out.astype(jnp.float32), log_sum.astype(jnp.float32)

    square = read(False, late, early)

    def own() -> tuple[Read, Read]:
        return read(True, early, early), joined(*square, *read(True, late, late))

    def others() -> tuple[Read, Read]:
        before = _is_before(mask)
        one = read(False, _either(before, early, late), _either(before, early, late))
        none = jnp.zeros_like(one[0]), jnp.full_like(one[1], jnp.finfo(jnp.float32).min / 4)
        of_early, of_late = _either(before, one, none), _either(before, none, one)
        return of_early, joined(*square, *of_late)

    both = jax.lax.cond(_is_own(mask), own, others)
    out, log_sum = (jnp.concatenate(parts, axis=2) for parts in zip(*both, strict=True))
    return out, log_sum


def _backward(
    dtype: str,
    how: dict,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    pattern: Pattern,
    out: Array,
    log_sum: Array,
    dout: Array,
) -> tuple[Array, Array, Array, Pattern]:
    early, late = _pieces(q, k, v, mask, dtype)
    results = [jnp.split(x, 2, axis=2) for x in (out.astype(dtype), log_sum, dout.astype(dtype))]
    for piece, *of_piece in zip((early, late), *results, strict=True):
        piece.update(zip(("out", "log_sum", "dout"), of_piece, strict=True))

    def slopes(causal: bool, queries: dict, keys: dict) -> tuple[Array, tuple[Array, Array]]:
        """Returns the gradients of queries, and of keys and values."""
        kernel = _kernel(q.shape[1], q.shape[2] // 2, causal, pattern.cap, False, **how)
        arrays = queries["q"], keys["k"], keys["v"], queries, keys
        dq, dk, dv = _by_row(_gradients(kernel), *arrays)
        return dq.astype(jnp.float32), (dk.astype(jnp.float32), dv.astype(jnp.float32))

    dlate, dearly_keys = slopes(False, late, early)
    add = functools.partial(jax.tree.map, jnp.add)

    def own() -> tuple:
        of_early, early_keys = slopes(True, early, early)
        of_late, late_keys = slopes(True, late, late)
        return of_early, dlate + of_late, add(dearly_keys, early_keys), late_keys

    def others() -> tuple:
        before = _is_before(mask)
        of_one, keys = slopes(False, _either(before, early, late), _either(before, early, late))
        none, no_keys = jax.tree.map(jnp.zeros_like, (of_one, keys))
        return (
            _either(before, of_one, none),
            dlate + _either(before, none, of_one),
            add(dearly_keys, _either(before, keys, no_keys)),
            _either(before, no_keys, keys),
        )

    *dq, early_keys, late_keys = jax.lax.cond(_is_own(mask), own, others)
    dk, dv = (jnp.concatenate(parts, axis=2) for parts in zip(early_keys, late_keys, strict=True))
    return jnp.concatenate(dq, axis=2) * _scale(q), dk, dv, pattern


def _scale(q: Array) -> float:
    return q.shape[-1] ** -0.5


def _pieces(q: Array, k: Array, v: Array, mask: Mask, dtype: str) -> list[dict[str, Any]]:
    """Returns the early and the late piece of queries, keys and values, and their documents."""
    q = q.astype(dtype) * jnp.asarray(_scale(q), dtype)
    halves = {n: jnp.split(x.astype(dtype), 2, axis=2) for n, x in dict(q=q, k=k, v=v).items()}
    segments = dict(query_segment=mask.query_segment, key_segment=mask.key_segment)
    halves |= {n: jnp.split(x, 2, axis=1) for n, x in segments.items() if x is not None}
    return [{n: pair[i] for n, pair in halves.items()} for i in (0, 1)]


def _is_own(mask: Mask) -> Array:
    """Tells whether the keys of a turn are those of the queries' own device."""
    return mask.key_position[0, 0] == mask.query_position[0, 0]


def _is_before(mask: Mask) -> Array:
    """Tells whether the early piece of the keys comes before that of the queries."""
    return mask.key_position[0, 0] < mask.query_position[0, 0]


def _either(first: Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), x, y)


def _by_row(function: Any, q: Array, k: Array, v: Array, queries: dict, keys: dict) -> Any:
    """Calls a kernel, or its gradients, for each row of a batch."""
    documents = None
    if "query_segment" in queries:
        both = queries["query_segment"], keys["key_segment"]
        documents = splash_attention.SegmentIds(*both)
    kept = [queries[name] for name in ("out", "log_sum", "dout") if name in queries]
    over = (0, 0, 0, None if documents is None else 0, *(0 for _ in kept))
    return jax.vmap(function, over)(q, k, v, documents, *kept)


def _gradients(kernel: Any) -> Any:
    """Returns the gradients of a kernel where the sum of exp(score) is over more than its keys.

    The kernel's own rule takes the sum that its forward pass kept; here it is given.
    """
    how = dict(kernel.kwargs)
    infos = kernel.dq_mask_info, kernel.dkv_mask_info

    def slopes(q: Array, k: Array, v: Array, documents: Any, *kept: Array) -> tuple:
        out, log_sum, dout = kept
        needed = (q, k, v, documents, None, out, log_sum, *infos)
        given = splash_attention_kernel._splash_attention_bwd(**how, res=needed, do=dout)
        return given[3:6]

    return slopes


def _kernel(
    heads: int,
    length: int,
    causal: bool,
    cap: float | None,
    residuals: bool,
    block: int,
    interpret: bool,
) -> Any:
    shape, size = (length, length), min(block, length)
    seen = (splash_attention.CausalMask if causal else splash_attention.FullMask)(shape)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([seen] * heads),
        block_sizes=block_sizes(size, size),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        save_residuals=residuals,
        interpret=interpret,
    )


def block_sizes(queries: int, keys: int) -> splash_attention.BlockSizes:
    """Returns blocks of so many queries and keys, in all three kernels."""
    return splash_attention.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
