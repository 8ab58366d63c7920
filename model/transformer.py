"""The whole network: embedding, blocks scanned over their period, unembedding."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from model import masks
from model.attention import RESIDUAL
from model.axes import ShardingRules, platform
from model.backends import choice
from model.block import Block
from model.cache import Cache, Layer, empty_layer, empty_places
from model.compute import PRODUCT, Compute
from model.config import ModelConfig
from model.norms import Norm
from model.parameter import Declare
from model.stacks import cut_where_used, unstacked

# Standard deviation of the logits at the start; it adds 0.02 nats to the first loss, ln V.
LOGIT_SCALE = 0.2

# Layers up to which a CPU runs an unrolled network faster, and still compiles it soon.
UNROLLED = 12

_POLICIES = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "matmuls": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}


class Transformer(nnx.Module):
    """A decoder of factored heads.

    ``blocks[i]`` stacks the layers i, i + p, i + 2p, ... on a leading axis, where p is the
    period ``len(config.window)``. In a model that is ready to decode (``model.decoding``)
    ``stacked`` may be false: ``blocks[i]`` is then layer i alone.
    """

    def __init__(self, config: ModelConfig, key: PRNGKeyArray, rules: ShardingRules | None = None):
        """Draws the parameters; the same key gives the same on every mesh.

        Args:
          config: shape and arithmetic.
          key: of all parameters.
          rules: maps logical axes to the axes of the mesh that is set.
        """
        choice.check(config.attention_backend)
        rules = rules or ShardingRules()
        self.config = config
        self.compute = Compute.of(config, rules)
        declare = Declare(key, rules, config.param_dtype)
        vocab, width = config.padded_vocab_size, config.embed_dim
        scale = LOGIT_SCALE / width**0.5
        # Read as an unembedding too, a tied embedding takes its scale.
        self.embedding = declare.table(
            "embedding",
            (vocab, width),
            ("vocab", "embed"),
            scale if config.tie_embeddings else 0.02,
        )
        learned = config.positions == "learned"
        self.positions = (
            declare.table("positions", (config.max_length, width), ("positions", "embed"), 0.01)
            if learned
            else None
        )

        def stack(offset: int, window: int | None) -> Block:
            layers = jnp.arange(offset, config.num_layers, config.period)
            keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(layers)
            return jax.vmap(
                lambda k: Block(config, Declare(k, rules, config.param_dtype), self.compute, window)
            )(keys)

        self.blocks = nnx.List([stack(i, window) for i, window in enumerate(config.window)])
        self.stacked = True
        self.norm = Norm(config, declare.inside("norm"), self.compute, width)
        self.unembedding = (
            None
            if config.tie_embeddings
            else declare.table(
                "unembedding", (vocab, width), ("vocab", "embed"), scale, "unembedding"
            )
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T Vp"]:
        """Returns the logits of each next token, in the accumulation dtype.

        Logits past the true vocabulary are the lowest finite number.

        Args:
          tokens: below ``config.vocab_size``.
          positions: of each token in its document; 0, 1, 2, ... when None.
          segments: document of each token; documents do not see each other.
          key: of dropout; None does not drop.
        """
        return self._logits(self.last_residual(tokens, positions, segments, key))

    def last_residual(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns what the unembedding reads: the normed residual after all blocks.

        Arguments as of ``__call__``.
        """
        mask = masks.causal(tokens.shape[1], segments, self.compute)
        if positions is None:
            positions = jnp.broadcast_to(mask.query_index, tokens.shape)
        x, _ = self._residual(tokens, positions, mask, None, key)
        return self.norm(x)

    @property
    def unembedding_table(self) -> nnx.Param:
        """The table [Vp, D] whose rows, times the normed residual, are the logits."""
        return self.embedding if self.unembedding is None else self.unembedding

    def decode(
        self,
        tokens: Int[Array, "B T"],
        index: Int[Array, "B T"],
        slot: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "B T Vp"], Cache]:
        """Returns the logits of tokens that follow those in a cache, and the cache with them.

        Args:
          tokens: the new tokens of each row.
          index: their places in their rows; -1 for padding, which no token sees.
          slot: of the cache that the first of them takes; the rest take those after it.
          cache: from ``empty_cache`` or an earlier call. What its slots held is overwritten.
        """
        cache = cache.hold(self.compute.place(index, ("batch", None)), slot)
        index = jnp.maximum(index, 0)
        mask = masks.Mask(index, cache.place, slot=slot)
        x, layers = self._residual(tokens, index, mask, cache.layers, None)
        return self._logits(self.norm(x)), Cache(cache.place, layers)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Returns a cache for ``batch`` rows with ``length`` slots."""
        config, rules, dtype = self.config, self.compute.rules, self.config.dtype
        if jnp.dtype(dtype).itemsize == 2 and platform() == "cpu":
            # A CPU's compiler would widen all slots to read or write one of 16 bits.
            dtype = config.accumulation_dtype
        layers = config.num_layers // config.period if self.stacked else None
        return Cache(
            empty_places(batch, length, rules),
            [
                empty_layer(layers, block.attention.cache_shapes(batch, length), dtype, rules)
                for block in self.blocks
            ],
        )

    def _residual(
        self,
        tokens: Array,
        positions: Array,
        mask: masks.Mask,
        cache: list[Layer] | None,
        key: Array | None,
    ) -> tuple[Array, Any]:
        """Returns the residual stream after all blocks, and the layers' caches if given."""
        config = self.config
        x = self._embed(tokens, positions)
        keys = None
        if key is not None and config.dropout > 0:
            first, key = jax.random.split(key)
            x = self.compute.dropout(x, config.dropout, first, RESIDUAL)
            keys = jax.random.split(key, (config.num_layers // config.period, config.period))

        def period(x: Array, layer: tuple) -> tuple[Array, Any]:
            blocks, caches, drop = layer
            after = []
            for i, block in enumerate(blocks):
                x, written = block(
                    x,
                    positions,
                    mask,
                    None if caches is None else caches[i],
                    None if drop is None else drop[i],
                )
                after.append(written)
            return x, after

        if not self.stacked:
            return self._apart(x, positions, mask, cache, keys)
        scanned = scanned_layers(config)
        if config.remat != "none":
            period = jax.checkpoint(period, policy=_POLICIES[config.remat], prevent_cse=not scanned)
        blocks = list(self.blocks)
        if scanned:
            return jax.lax.scan(period, x, (blocks, cache, keys))
        written, count = [], config.num_layers // config.period
        others = unstacked((cache, keys), count)
        for own, rest in zip(cut_where_used(blocks, count), others, strict=True):
            x, after = period(x, (own, *rest))
            written.append(after)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *written)

    def _apart(
        self, x: Array, positions: Array, mask: masks.Mask, cache: Any, keys: Array | None
    ) -> tuple[Array, Any]:
        """Goes through layers that stand apart."""
        none = [None] * len(self.blocks)
        drops = none if keys is None else keys.reshape(-1)
        written = []
        for block, layer, drop in zip(self.blocks, cache or none, drops, strict=True):
            x, after = block(x, positions, mask, layer, drop)
            written.append(after)
        return x, written

    def _embed(self, tokens: Array, positions: Array) -> Array:
        x = self._rows(self.embedding, tokens)
        return x if self.positions is None else x + self._rows(self.positions, positions)

    def _rows(self, table: nnx.Param, index: Array) -> Array:
        """Looks up rows of a table, in the dtype of activations."""
        compute = self.compute
        spec = compute.rules.spec(RESIDUAL, (*index.shape, self.config.embed_dim))
        split = compute.rules.spec(table.axes, table.shape) or ()
        # Cast first, the smaller type is gathered over the mesh; else a few rows are cast.
        looked_in = compute.weight(table) if any(split) else table[...]
        return looked_in.at[index].get(out_sharding=spec).astype(compute.dtype)

    def _logits(self, x: Array) -> Array:
        compute, config = self.compute, self.config
        axes, wide = ("batch", "length", "vocab"), compute.accumulation_dtype
        table = self.unembedding_table
        logits = compute.einsum("btd,vd->btv", x, table, axes=axes, dtype=wide)
        true = jnp.arange(config.padded_vocab_size) < config.vocab_size
        return jnp.where(true[None, None], logits, jnp.finfo(logits.dtype).min)


def scanned_layers(config: ModelConfig) -> bool:
    """Returns whether layers are scanned; where the config does not say, by device and depth."""
    if config.scan_layers is not None:
        return config.scan_layers
    return platform() != "cpu" or config.num_layers > UNROLLED
