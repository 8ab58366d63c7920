"""A model made ready to decode: what every token would do again is done once."""

import copy
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from model.block import Block
from model.cache import Cache
from model.layers import scanned, unstacked
from model.transformer import Transformer

# Kinds of parameters that are operands of products and nothing else.
MULTIPLIED = ("matrix", "unembedding")


class Decoder(NamedTuple):
    """A network whose weights are cast and, where layers are unrolled, cut apart."""

    model: Transformer  # where layers are cut apart, its stacks have one each, for its shapes
    layers: list[Block] | None  # cut apart; None where they are scanned

    def empty_cache(self, rows: int, length: int) -> Cache:
        """Returns a cache for ``rows`` rows with ``length`` slots."""
        return self.model.empty_cache(rows, length)

    def decode(
        self,
        tokens: Int[Array, "B T"],
        index: Int[Array, "B T"],
        slot: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "B T Vp"], Cache]:
        """Returns logits and cache, as ``Transformer.decode``."""
        return self.model.decode(tokens, index, slot, cache, self.layers)


def ready(model: Transformer) -> Decoder:
    """Returns a network that is ready to decode.

    Matrices take the dtype of activations, as they would at every use; gains, biases and tables
    that are looked up stay as they are. What is changed has memory of its own.
    """
    stacks, apart, table = _cast(model)
    model = copy.copy(model)
    model.blocks, model.unembedding = nnx.List(stacks), nnx.data(table)
    return Decoder(model, apart)


@jax.jit
def _cast(model: Transformer) -> tuple[list[Block], list[Block] | None, Any]:
    dtype = model.config.dtype

    def cast(param: nnx.Param) -> Any:
        return param.replace(param[...].astype(dtype)) if param.kind in MULTIPLIED else param

    blocks = jax.tree.map(cast, list(model.blocks), is_leaf=lambda x: isinstance(x, nnx.Param))
    table: Any = model.unembedding_table
    table = table.replace(table[...].astype(dtype))
    if scanned(model.config):
        return blocks, None, table
    return jax.tree.map(lambda leaf: leaf[:1], blocks), unstacked(blocks), table
