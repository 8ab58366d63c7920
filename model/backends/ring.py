"""Ring attention: the sequence stays sharded, and keys and values go round the devices.

Each device keeps its queries. In as many turns as there are devices it attends to the keys that it
has and passes them on to the next one, so that no device ever holds the keys of more than two
shards (Liu et al. 2023, "Ring Attention with Blockwise Transformers"). What is read in each turn is
weighed by the sum of its exponentials, as in blocks on one device; the backward pass goes round
again, and the gradients of keys travel with them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PyTree

from model.compute import PRODUCT
from model.gradients import with_gradient
from model.masks import Mask
from model.pattern import Pattern

# Queries, keys, values, mask and pattern to what each query reads of these keys, in the
# accumulation dtype, and the log of the sum of exp(score) [B, H, T].
Forward = Callable[[Array, Array, Array, Mask, Pattern], tuple[Array, Array]]

# The same, then what the queries read of all keys with their log, and its cotangent, to the
# gradients of queries, keys, values and the pattern; the first three in the accumulation dtype.
Backward = Callable[..., tuple[Array, Array, Array, Pattern]]


@dataclasses.dataclass(frozen=True)
class Ring:
    """How a backend attends to some of the keys; its pattern has no sinks."""

    forward: Forward
    backward: Backward


# What goes round: keys, values, and what mask and pattern know of keys.
Keys = tuple[Array, Array, Array, Array | None, dict[str, Array]]


def local(
    ring: Ring, axis: str, devices: int, dtype: str
) -> Callable[[Array, Array, Array, Mask, Pattern], Float[Array, "B H T R"]]:
    """Returns the attention of a shard of the sequence, for use inside ``jax.shard_map``.

    Args:
      ring: how a backend attends to the keys of a turn.
      axis: of the mesh, over which queries and keys are sharded.
      devices: along it.
      dtype: of the result.
    """
    forward = functools.partial(_forward, ring, axis, devices)
    backward = functools.partial(_backward, ring, axis, devices)

    def whole(*arguments: Any) -> tuple[Array, tuple[Array, Array]]:
        out, log_sum = forward(*arguments)
        # A policy that keeps products keeps what the backward pass needs of this one.
        out, log_sum = checkpoint_name((out.astype(dtype), log_sum), PRODUCT)
        return out, (out, log_sum)

    return with_gradient(lambda *arguments: whole(*arguments)[0], whole, backward)


def _forward(
    ring: Ring, axis: str, devices: int, q: Array, k: Array, v: Array, mask: Mask, pattern: Pattern
) -> tuple[Array, Array]:
    """Returns what each query reads, and the log of the sum of exp(score), its sink among it."""

    def attend(keys: Keys) -> tuple[Array, Array]:
        return ring.forward(q, *keys[:2], *_with(keys, mask, pattern))

    def turn(carry: tuple[Keys, Array, Array], _: None) -> tuple[tuple, None]:
        keys, out, log_sum = carry
        after = _pass_on(keys, axis, devices)  # first, so that it travels meanwhile
        return (after, *joined(out, log_sum, *attend(keys))), None

    keys = k, v, mask.key_position, mask.key_segment, pattern.key
    shapes = jax.eval_shape(attend, keys)
    out, log_sum = jnp.zeros(shapes[0].shape, shapes[0].dtype), _sinks(pattern, shapes[1])
    carry, _ = jax.lax.scan(turn, (keys, out, log_sum), None, length=devices - 1)
    keys, out, log_sum = carry
    return joined(out, log_sum, *attend(keys))


def _backward(
    ring: Ring, axis: str, devices: int, arguments: tuple, kept: tuple[Array, Array], dout: Array
) -> tuple:
    """Returns the gradients of queries, keys, values, none, and what the pattern has."""
    q, k, v, mask, pattern = arguments
    out, log_sum = kept
    wide = log_sum.dtype

    def attend(keys: Keys) -> tuple[tuple, tuple]:
        """Returns the gradients that stay with the queries, and those that go with the keys."""
        dq, dk, dv, of_pattern = ring.backward(
            q, *keys[:2], *_with(keys, mask, pattern), out, log_sum, dout
        )
        return (dq, of_pattern.query, of_pattern.head), (dk, dv, of_pattern.key)

    def turn(carry: tuple, _: None) -> tuple[tuple, None]:
        keys, stay, go = carry
        after, go = _pass_on(keys, axis, devices), _pass_on(go, axis, devices)
        more = attend(keys)
        return (after, _plus(stay, more[0]), _plus(go, more[1])), None

    keys = k, v, mask.key_position, mask.key_segment, pattern.key
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(attend, keys))
    (keys, stay, go), _ = jax.lax.scan(turn, (keys, *zeros), None, length=devices - 1)
    more = attend(keys)
    go = _plus(_pass_on(go, axis, devices), more[1])
    dq, dqueries, dheads = _plus(stay, more[0])
    dk, dv, dkeys = _pass_on(go, axis, devices)  # home
    dsink = None
    if pattern.sink is not None:
        mean = (dout.astype(wide) * out.astype(wide)).sum(-1)
        chance = jnp.exp(pattern.sink.astype(wide)[None, :, None] - log_sum)
        dsink = -(chance * mean).sum((0, 2)).astype(pattern.sink.dtype)
    dpattern = dataclasses.replace(pattern, query=dqueries, key=dkeys, head=dheads, sink=dsink)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, dpattern


def _with(keys: Keys, mask: Mask, pattern: Pattern) -> tuple[Mask, Pattern]:
    """Returns mask and pattern of the keys of a turn."""
    _, _, position, segment, arrays = keys
    mask = dataclasses.replace(mask, key_position=position, key_segment=segment, in_order=False)
    return mask, dataclasses.replace(pattern, key=arrays, sink=None)


def _pass_on(x: PyTree, axis: str, devices: int) -> PyTree:
    """Returns what the device before has, all along the ring."""
    around = [(i, (i + 1) % devices) for i in range(devices)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis, around), x)


def joined(out: Array, log_sum: Array, more: Array, log_more: Array) -> tuple[Array, Array]:
    """Returns what queries read of two sets of keys, and the log of the sum of both."""
    both = jnp.logaddexp(log_sum, log_more)
    shares = (jnp.exp(part - both)[..., None] for part in (log_sum, log_more))
    first, second = shares
    return out * first + more * second, both


def _sinks(pattern: Pattern, like: jax.ShapeDtypeStruct) -> Array:
    """Returns the log of the sum before any key: of the sinks, or of nothing."""
    if pattern.sink is None:
        return jnp.full(like.shape, jnp.finfo(like.dtype).min / 4, like.dtype)
    return jnp.broadcast_to(pattern.sink.astype(like.dtype)[None, :, None], like.shape)


def _plus(sums: PyTree, more: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, sums, more)
