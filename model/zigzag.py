"""The order of tokens that gives every device of a ring as many visible pairs as any other.

A token sees those before it, so that the last of n equal shards of a sequence has most to do. Cut
in 2n pieces, of which device i takes the pieces i and 2n - 1 - i, all have the same. Tokens are put
in this order when a model reads them, and its last residual is put back; between, positions say
what comes before what.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from model import context
from model.axes import Axes
from model.compute import Compute
from model.config import ModelConfig


def shards(config: ModelConfig, compute: Compute, length: int) -> int:
    """Returns over how many devices a sequence is to lie in this order; 0: in its own."""
    keys = config.num_kv_heads, config.head_dim
    full = config.value_map == "full"
    values = (1, config.embed_dim) if full else (config.num_kv_heads, config.value_dim)
    way = context.way(compute.rules, config.num_heads, keys, values, config.head_dim)
    devices = context.shards(compute.rules)
    return devices if way == "ring" and length % (2 * devices) == 0 else 0


def order(length: int, devices: int) -> Int[np.ndarray, "T"]:
    """Returns which token stands at each place."""
    pieces = np.arange(length).reshape(2 * devices, -1)
    return np.concatenate([pieces[[i, 2 * devices - 1 - i]].reshape(-1) for i in range(devices)])


def into(x: Array, axes: Axes, compute: Compute) -> Array:
    """Returns an array [B, T, ...] with its tokens in this order.

    Args:
      x: its tokens in their own.
      axes: logical axes, of which the second is "length".
      compute: says how arrays are sharded.
    """
    devices = context.shards(compute.rules)
    streams = _streams(devices)

    def local(x: Array) -> Array:
        even, odd = (_send(half, s, compute) for half, s in zip(_halves(x), streams, strict=True))
        return _by_parity(even, odd, compute)

    return _on_shards(local, x, axes, compute)


def back(x: Array, axes: Axes, compute: Compute) -> Array:
    """Undoes ``into``."""
    devices = context.shards(compute.rules)
    streams = [[(to, start) for start, to in stream] for stream in _streams(devices)]

    def local(x: Array) -> Array:
        first, second = _halves(x)
        parts = _halves(_by_parity(first, second, compute))
        sent = [_send(half, s, compute) for half, s in zip(parts, streams, strict=True)]
        return jnp.concatenate(sent, axis=1)

    return _on_shards(local, x, axes, compute)


def _streams(devices: int) -> list[list[tuple[int, int]]]:
    """Returns where each device sends its first piece, 2i, and its second, 2i + 1."""

    def owner(piece: int) -> int:
        return min(piece, 2 * devices - 1 - piece)

    return [[(i, owner(2 * i + half)) for i in range(devices)] for half in (0, 1)]


def _halves(x: Array) -> list[Array]:
    return jnp.split(x, 2, axis=1)


def _by_parity(even: Array, odd: Array, compute: Compute) -> Array:
    """Joins the two pieces of a device; the even one is the first on even devices."""
    first = jax.lax.axis_index(compute.rules.length[0]) % 2 == 0
    pair = jnp.where(first, even, odd), jnp.where(first, odd, even)
    return jnp.concatenate(pair, axis=1)


def _send(x: Array, stream: list[tuple[int, int]], compute: Compute) -> Array:
    return jax.lax.ppermute(x, compute.rules.length[0], stream)


def _on_shards(local: Callable[[Array], Array], x: Array, axes: Axes, compute: Compute) -> Array:
    x = compute.reshard(x, axes)
    spec = compute.rules.spec(axes, x.shape)
    return jax.shard_map(local, out_specs=spec, check_vma=False)(x)
