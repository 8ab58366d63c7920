"""The key/value cache: what decoding remembers of the tokens before."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.axes import ShardingRules
from model.masks import NEVER


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """Keys and values of one layer, [B, G, S, K] and [B, Gv, S, R].

    A stack of layers has an axis before those; see also ``Cache.without_row``.
    """

    key: Float[Array, "*many G S K"]
    value: Float[Array, "*many Gv S R"]

    def write(
        self,
        key: Float[Array, "B G T K"],
        value: Float[Array, "B Gv T R"],
        slot: Int[Array, ""],
    ) -> "Layer":
        """Returns one layer with the keys and values of new tokens in the slots from ``slot``."""

        def put(slots: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), slot, 2)

        return Layer(put(self.key, key), put(self.value, value))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What all layers remember. Rows fill the same slots together, whatever their lengths.

    Attributes:
      place: place in its row of the token in each slot; NEVER where there is none, which no
        query sees.
      layers: one for each stack of layers, or for each layer of a model that is ready to decode.
    """

    place: Int[Array, "B S"]
    layers: list[Layer]

    def hold(self, index: Int[Array, "B T"], slot: Int[Array, ""]) -> "Cache":
        """Returns the cache with the places of new tokens in the slots from ``slot``."""
        place = jnp.where(index < 0, NEVER, index).astype(self.place.dtype)
        held = jax.lax.dynamic_update_slice_in_dim(self.place, place, slot, 1)
        return dataclasses.replace(self, place=held)

    def without_row(self) -> "Cache":
        """Returns a cache of one row, whose layers stand apart, without the axis of rows.

        So carried through a loop its slots are written in place; XLA's CPU compiler copies them
        otherwise. Another cache is returned as it is.
        """
        lone = self.place.shape[0] == 1 and all(layer.key.ndim == 4 for layer in self.layers)
        return self._reshaped(lambda x: x[0]) if lone else self

    def with_rows(self) -> "Cache":
        """Undoes ``without_row``."""
        lone = all(layer.key.ndim == 3 for layer in self.layers)
        return self._reshaped(lambda x: x[None]) if lone else self

    def _reshaped(self, reshape: Callable[[Array], Array]) -> "Cache":
        return dataclasses.replace(self, layers=jax.tree.map(reshape, self.layers))


def empty_places(batch: int, length: int, rules: ShardingRules) -> Int[Array, "B S"]:
    """Returns the places of ``length`` empty slots."""
    shape = (batch, length)
    return jnp.full(shape, NEVER, jnp.int32, out_sharding=rules.spec(("batch", None), shape))


def empty_layer(
    layers: int | None,
    shapes: tuple[Sequence[int], Sequence[int]],
    dtype: str,
    rules: ShardingRules,
) -> Layer:
    """Returns empty slots of a stack of layers, or of one layer.

    Args:
      layers: in the stack; None for one layer that is in none.
      shapes: (B, G, S, K) of keys and (B, Gv, S, R) of values.
      dtype: of both.
      rules: place the arrays; the slots are not split.
    """
    axes = ("batch", "kv_heads", None, None)

    def zeros(shape: Sequence[int]) -> Array:
        if layers is None:
            return jnp.zeros(shape, dtype, out_sharding=rules.spec(axes, shape))
        full = (layers, *shape)
        return jnp.zeros(full, dtype, out_sharding=rules.spec(("layers", *axes), full))

    return Layer(zeros(shapes[0]), zeros(shapes[1]))
