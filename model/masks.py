"""Which key a query may see: computed where it is needed, never stored."""

import dataclasses
from collections.abc import Callable
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from model.axes import Axes, spec_of
from model.compute import Compute
from model.zigzag import order as zigzag_order

# A position behind every query: of a key that none may see.
NEVER = 2**30


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """A causal mask, perhaps within a window and within documents."""

    query_position: Int[Array, "b T"]  # of each query in its row; b is 1 where all rows agree
    key_position: Int[Array, "c S"]  # of each key in its row; c is 1 where all rows agree
    query_segment: Int[Array, "B T"] | None = None  # document; None where all is one
    key_segment: Int[Array, "B S"] | None = None
    # Keys that a query sees, its own included; None sees all before it.
    window: int | None = dataclasses.field(default=None, metadata=dict(static=True))
    # Query i and key i stand at position i, so that keys after i are not seen.
    in_order: bool = dataclasses.field(default=False, metadata=dict(static=True))
    # Shards of the sequence whose tokens are in the order of ``zigzag``; 0: all in their own.
    zigzag: int = dataclasses.field(default=0, metadata=dict(static=True))
    slot: Int[Array, ""] | None = None  # of a cache, that the first query's own key takes

    def visible(self) -> Bool[Array, "b 1 T S"]:
        """Returns where a query sees a key."""
        distance = self.query_position[:, None, :, None] - self.key_position[:, None, None, :]
        seen = distance >= 0
        if self.window is not None:
            seen &= distance < self.window
        if self.query_segment is not None and self.key_segment is not None:
            seen &= self.query_segment[:, None, :, None] == self.key_segment[:, None, None, :]
        return seen

    def within(self, window: int | None) -> "Mask":
        """Returns the same mask with another window."""
        return dataclasses.replace(self, window=window)

    def running_sum(
        self, x: Float[Array, "B h S"]
    ) -> tuple[Float[Array, "B h T"], Float[Array, "B h S"]]:
        """Returns the sums of what the keys have, up to and with each query and each key.

        Slots of a cache that hold no token of a row add nothing. The difference of two sums is
        the sum over the tokens between.

        Args:
          x: of each key, for each head or for all (h = 1); summed in float32.
        """
        x = x.astype(jnp.float32)
        if (spec := spec_of(x)) is not None:
            x = jax.sharding.reshard(x, PartitionSpec(*spec[:2], None))
        taken = self.key_position[:, None] != NEVER
        x = jnp.where(taken, x, 0)
        if self.zigzag:
            order, spec = zigzag_order(x.shape[-1], self.zigzag), spec_of(x)
            x = x.at[..., np.argsort(order)].get(out_sharding=spec)
            at_keys = jnp.cumsum(x, axis=-1).at[..., order].get(out_sharding=spec)
        else:
            at_keys = jnp.cumsum(x, axis=-1)
        if self.slot is None:
            return at_keys, at_keys
        count = self.query_position.shape[1]
        return jax.lax.dynamic_slice_in_dim(at_keys, self.slot, count, axis=2), at_keys

    def resharded(self, queries: Axes, keys: Axes, compute: Compute) -> "Mask":
        """Returns the mask with its arrays sharded as queries and keys are, by logical axes."""
        moved = self.of(
            lambda x: compute.reshard(x, ("batch", queries[2])),
            lambda x: compute.reshard(x, ("batch", keys[2])),
        )
        return dataclasses.replace(moved, in_order=self.in_order)

    def of(self, queries: Callable[[Array], Array], keys: Callable[[Array], Array]) -> "Mask":
        """Returns the mask of other queries and keys, which need not be in order.

        Args: what makes the arrays of those of the arrays here, [b, T] and [b, S].
        """
        return dataclasses.replace(
            self,
            query_position=queries(self.query_position),
            key_position=keys(self.key_position),
            query_segment=jax.tree.map(queries, self.query_segment),
            key_segment=jax.tree.map(keys, self.key_segment),
            in_order=False,
        )


def causal(
    length: int, segments: Int[Array, "B T"] | None, compute: Compute, zigzag: int = 0
) -> Mask:
    """Returns the mask of whole sequences, each token seeing itself and those before it.

    Args:
      length: T, tokens of a sequence.
      segments: document of each token, which do not see each other; None: all is one.
      compute: reshards the keys' side whole, the queries' side as the sequence is sharded.
      zigzag: shards over which tokens lie in that order; 0: in their own.
    """
    index = jnp.asarray(zigzag_order(length, zigzag))[None] if zigzag else jnp.arange(length)[None]
    keys = None if segments is None else compute.reshard(segments, ("batch", None))
    queries = compute.reshard(index, (None, "length"))
    return Mask(queries, index, segments, keys, in_order=not zigzag, zigzag=zigzag)
