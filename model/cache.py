"""The key/value cache: what decoding remembers of the tokens before."""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.axes import Axes, ShardingRules
from model.compute import Compute
from model.heads import Heads
from model.masks import NEVER, Mask

REMEMBERED: Axes = ("batch", "kv_heads")  # the slots and what follows are not split

# What a layer remembers of each slot: "key" [B, G, S, K], "value" [B, Gv, S, R], and a variant's
# more. A stack of layers has an axis before those.
Layer = dict[str, Float[Array, "..."]]


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What all layers remember. Rows fill the same slots together, whatever their lengths."""

    # In its row of the token in each slot; NEVER where there is none, which no query sees.
    position: Int[Array, "B S"]
    layers: list[Layer]  # of each stack of layers, or of each layer where these are unrolled

    def hold(self, index: Int[Array, "B T"], slot: Int[Array, ""]) -> "Cache":
        """Returns the cache with the positions of new tokens in the slots from ``slot``."""
        position = jnp.where(index < 0, NEVER, index).astype(self.position.dtype)
        position = jax.lax.dynamic_update_slice_in_dim(self.position, position, slot, 1)
        return dataclasses.replace(self, position=position)


def remember(layer: Layer, heads: Heads, mask: Mask, compute: Compute) -> tuple[Heads, Layer]:
    """Writes what a layer has of new tokens from the mask's slot on; returns all slots with it.

    Raises:
      ValueError: the mask does not say which slot.
    """
    slot = mask.slot
    if slot is None:
        raise ValueError("with a cache, the mask must say which slot the tokens take")

    def put(slots: Array, new: Array) -> Array:
        new = compute.reshard(new.astype(slots.dtype), REMEMBERED)
        return jax.lax.dynamic_update_slice_in_dim(slots, new, slot, 2)

    written = {name: put(layer[name], new) for name, new in heads.remembered.items()}
    return heads.remembering(written), written


def empty_cache(
    rows: int, length: int, layers: list[dict], stored: dict[str, str], rules: ShardingRules
) -> Cache:
    """Returns a cache with ``length`` empty slots for each row.

    ``layers`` are shapes and types of what each layer, or stack of layers, remembers; types that
    are keys of ``stored`` are stored as its values.
    """

    stacked = len(layers[0]["key"].shape) - 4

    def zeros(x: jax.ShapeDtypeStruct) -> Array:
        spec = rules.spec((*("layers",) * stacked, *REMEMBERED), x.shape)
        return jnp.zeros(x.shape, stored.get(x.dtype.name, x.dtype), out_sharding=spec)

    shape = (rows, length)
    position = jnp.full(shape, NEVER, jnp.int32, out_sharding=rules.spec(("batch", None), shape))
    return Cache(position, jax.tree.map(zeros, layers))
