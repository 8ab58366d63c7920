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

    model: Transformer  # its stacks of blocks are read where layers are scanned
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
    blocks, table = _cast(model)
    model = copy.copy(model)
    model.unembedding = nnx.data(table)
    if not scanned(model.config):
        return Decoder(model, blocks)
    model.blocks = nnx.List(blocks)
    return Decoder(model, None)


@jax.jit
def _cast(model: Transformer) -> tuple[list[Block], Any]:
    dtype = model.config.dtype

    def cast(param: nnx.Param) -> Any:
        return param.replace(param[...].astype(dtype)) if param.kind in MULTIPLIED else param

    blocks = jax.tree.map(cast, list(model.blocks), is_leaf=lambda x: isinstance(x, nnx.Param))
    table = model.unembedding_table
    blocks = blocks if scanned(model.config) else unstacked(blocks)
    return blocks, table.replace(table[...].astype(dtype))
