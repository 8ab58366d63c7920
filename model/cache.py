"""The key/value cache: what decoding remembers of the tokens before."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.axes import ShardingRules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of one layer, or of a stack of layers with a leading axis.

    Slot s holds the token at place s of its row. A slot past a row's last token holds
    whatever was written there; it is behind the causal mask until it is written again.
    """

    key: Float[Array, "*layers B G S K"]
    value: Float[Array, "*layers B Gv S R"]

    def write(
        self,
        key: Float[Array, "B G T K"],
        value: Float[Array, "B Gv T R"],
        index: Int[Array, "B T"],
    ) -> "Cache":
        """Returns the cache of one layer with new keys and values at their places.

        Args:
          key: of the new tokens.
          value: of the new tokens.
          index: place of each new token in its row; consecutive in a row.
        """
        return Cache(_put(self.key, key, index), _put(self.value, value, index))


def empty(
    layers: int,
    key_shape: tuple[int, int, int, int],
    value_shape: tuple[int, int, int, int],
    dtype: str,
    rules: ShardingRules,
) -> Cache:
    """Returns an empty cache for a stack of layers.

    Args:
      layers: in the stack.
      key_shape: (B, G, S, K).
      value_shape: (B, Gv, S, R).
      dtype: of both.
      rules: place the arrays; the slots are not split.
    """
    axes = ("layers", "batch", "kv_heads", None, None)

    def zeros(shape: tuple[int, ...]) -> Array:
        full = (layers, *shape)
        return jnp.zeros(full, dtype, out_sharding=rules.spec(axes, full))

    return Cache(zeros(key_shape), zeros(value_shape))


def _put(slots: Array, new: Array, index: Array) -> Array:
    """Writes new [B, G, T, W] into slots [B, G, S, W] at index [B, T].

    By comparison, not by scatter: each shard of rows and heads then writes its own, and
    nothing moves. A single token selects; several are placed by a one-hot product.
    """
    places = index[:, None, :, None] == jnp.arange(slots.shape[2])[None, None, None]
    if new.shape[2] == 1:
        return jnp.where(places.swapaxes(2, 3), new.astype(slots.dtype), slots)
    spread = jnp.einsum("bgtw,bxts->bgsw", new.astype(slots.dtype), places.astype(slots.dtype))
    return jnp.where(places.any(2)[..., None], spread, slots)
