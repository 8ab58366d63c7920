"""The key/value cache: what decoding remembers of the tokens before."""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.axes import WHOLE_KEYS, ShardingRules
from model.compute import Compute
from model.heads import Heads
from model.masks import NEVER, Mask

# What a layer remembers of each slot: "key" [B, G, S, K], "value" [B, Gv, S, R], and a variant's
# more. A stack of layers has an axis before those.
Layer = dict[str, Float[Array, "..."]]


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What all layers remember. Rows fill the same slots together, whatever their lengths.

    Attributes:
      position: in its row of the token in each slot; NEVER where there is none, which no
        query sees.
      layers: one for each stack of layers, or for each layer where these are unrolled.
    """

    position: Int[Array, "B S"]
    layers: list[Layer]

    def hold(self, index: Int[Array, "B T"], slot: Int[Array, ""]) -> "Cache":
        """Returns the cache with the positions of new tokens in the slots from ``slot``."""
        position = jnp.where(index < 0, NEVER, index).astype(self.position.dtype)
        held = jax.lax.dynamic_update_slice_in_dim(self.position, position, slot, 1)
        return dataclasses.replace(self, position=held)


def remember(layer: Layer, heads: Heads, mask: Mask, compute: Compute) -> tuple[Heads, Layer]:
    """Writes what new tokens have to the slots that they take, and returns all slots' with it.

    Args:
      layer: what one layer remembers.
      heads: of the new tokens.
      mask: says which slot is the first that they take.
      compute: splits what is remembered; slots are not split.

    Raises:
      ValueError: the mask does not say which slot.
    """
    slot = mask.slot
    if slot is None:
        raise ValueError("with a cache, the mask must say which slot the tokens take")

    def put(slots: Array, new: Array) -> Array:
        axes = (*WHOLE_KEYS[:3], *(None,) * (new.ndim - 3))
        new = compute.reshard(new.astype(slots.dtype), axes)
        return jax.lax.dynamic_update_slice_in_dim(slots, new, slot, 2)

    written = {name: put(layer[name], new) for name, new in heads.remembered.items()}
    return heads.remembering(written), written


def empty_cache(
    rows: int, length: int, layers: list[dict], kept: dict[str, str], rules: ShardingRules
) -> Cache:
    """Returns a cache of empty slots.

    Args:
      rows: of the batch.
      length: slots of a row.
      layers: shapes and types of what each layer, or stack of layers, remembers.
      kept: types that are held as others.
      rules: split the arrays over the mesh; the slots are not split.
    """

    def zeros(x: jax.ShapeDtypeStruct, stacked: int) -> Array:
        axes = (*("layers",) * stacked, *WHOLE_KEYS[:3])
        spec = rules.spec((*axes, *(None,) * (len(x.shape) - len(axes))), x.shape)
        return jnp.zeros(x.shape, kept.get(x.dtype.name, x.dtype), out_sharding=spec)

    shape = (rows, length)
    position = jnp.full(shape, NEVER, jnp.int32, out_sharding=rules.spec(("batch", None), shape))
    return Cache(
        position,
        [{n: zeros(x, len(own["key"].shape) - 4) for n, x in own.items()} for own in layers],
    )
