"""The whole network: embedding, blocks, unembedding."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from model import layers, masks, zigzag
from model.axes import RESIDUAL, TOKENS, WHOLE_RESIDUAL, ShardingRules, platform
from model.backends import choice
from model.block import Block
from model.cache import Cache, empty_cache
from model.compute import Compute
from model.config import ModelConfig
from model.devices.choice import device
from model.norms import Norm
from model.parameter import Declare

# Standard deviation of the logits at the start; it adds 0.02 nats to the first loss, ln V.
LOGIT_SCALE = 0.2


class Transformer(nnx.Module):
    """A decoder of factored heads.

    ``blocks[i]`` stacks the layers i, i + p, i + 2p, ... on a leading axis, where p is the
    period ``len(config.window)``.
    """

    def __init__(self, config: ModelConfig, key: PRNGKeyArray, rules: ShardingRules | None = None):
        """Draws the parameters; the same key gives the same on every mesh.

        Args:
          config: shape and arithmetic.
          key: of all parameters.
          rules: maps logical axes to the axes of the mesh that is set.
        """
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
            numbers = jnp.arange(offset, config.num_layers, config.period)

            def block(number: Array) -> Block:
                of_layer = jax.random.fold_in(key, number)
                declare = Declare(of_layer, rules, config.param_dtype, mapped=("layers",))
                return Block(config, declare, self.compute, window)

            return jax.vmap(block)(numbers)

        self.blocks = nnx.List([stack(i, window) for i, window in enumerate(config.window)])
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
        length, compute = tokens.shape[1], self.compute
        shards = 0
        if self.config.dropout == 0 or key is None:  # which draws by place
            shards = zigzag.shards(self.config, compute, length)
        if shards:
            tokens = zigzag.into(tokens, TOKENS, compute)
            positions, segments = jax.tree.map(
                lambda x: zigzag.into(x, TOKENS, compute), (positions, segments)
            )
        mask = masks.causal(length, segments, compute, shards)
        if positions is None:
            positions = jnp.broadcast_to(mask.query_position, tokens.shape)
        x = self._embed(tokens, positions)
        if self.config.dropout > 0 and key is not None:
            first, key = jax.random.split(key)
            x = self.compute.dropout(x, self.config.dropout, first, RESIDUAL)
        else:
            key = None
        x, _ = layers.run(self.config, self.blocks, x, positions, mask, key=key)
        x = self.norm(x)
        return zigzag.back(x, WHOLE_RESIDUAL, compute) if shards else x

    def attention_line(self, rows: int, length: int, documents: bool = False) -> str:
        """Returns a line that says which backend computes the attention of whole sequences.

        Args:
          rows: of a batch.
          length: tokens of a row.
          documents: whether a row has several.

        Raises:
          UserError: the backend that the config names refuses what the network asks.
        """
        shape = (rows, length)
        spec = self.compute.rules.spec(TOKENS, shape)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=spec)
        segments = tokens if documents else None
        with choice.recorded() as names:
            # A function of its own each time, since jax remembers what it traced.
            jax.eval_shape(
                lambda *arrays: Transformer.last_residual(*arrays), self, tokens, None, segments
            )
        if not names:
            return f"attention: {self.config.attention} computes its own pattern"
        auto = f" (auto, for {length} tokens on a {platform()})"
        why = auto if self.config.attention_backend == "auto" else ""
        return f"attention: {', '.join(dict.fromkeys(names))}{why}"

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
        apart: Sequence[Block] | None = None,
    ) -> tuple[Float[Array, "B T Vp"], Cache]:
        """Returns the logits of tokens that follow those in a cache, and the cache with them.

        Args:
          tokens: the new tokens of each row.
          index: their positions in their rows; -1 for padding, which no token sees.
          slot: of the cache that the first of them takes; the rest take those after it.
          cache: from ``empty_cache`` or an earlier call. What its slots held is overwritten.
          apart: ``layers.unstacked`` blocks, where layers are not scanned; cut here when None.
        """
        tokens, index = (self.compute.reshard(a, ("batch", None)) for a in (tokens, index))
        cache = cache.hold(index, slot)
        index = jnp.maximum(index, 0)
        mask = masks.Mask(index, cache.position, slot=slot)
        x = self._embed(tokens, index)
        x, written = layers.run(
            self.config, self.blocks, x, index, mask, cache.layers, layers=apart
        )
        return self._logits(self.norm(x)), Cache(
            cache.position, [layer for layer in written if layer is not None]
        )

    def empty_cache(self, rows: int, length: int) -> Cache:
        """Returns a cache for ``rows`` rows with ``length`` slots."""
        config, dtype = self.config, self.config.dtype
        shapes = [layers.projected(s, rows, length, self.compute).remembered for s in self.blocks]
        if not layers.scanned(config):
            shapes = [
                {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in stack.items()}
                for stack in shapes * (config.num_layers // config.period)
            ]
        wide = device().wide_cache and jnp.dtype(dtype).itemsize == 2
        kept = {dtype: config.accumulation_dtype if wide else dtype}
        return empty_cache(rows, length, shapes, kept, self.compute.rules)

    def _embed(self, tokens: Array, positions: Array) -> Array:
        x = self.compute.rows(self.embedding, tokens)
        return x if self.positions is None else x + self.compute.rows(self.positions, positions)

    def _logits(self, x: Array) -> Array:
        compute, config = self.compute, self.config
        axes, wide = ("batch", "length", "vocab"), compute.accumulation_dtype
        table = self.unembedding_table
        logits = compute.einsum("btd,vd->btv", x, table, axes=axes, dtype=wide)
        true = jnp.arange(config.padded_vocab_size) < config.vocab_size
        return jnp.where(true[None, None], logits, jnp.finfo(logits.dtype).min)
