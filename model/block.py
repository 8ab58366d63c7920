"""One block: attention and MLP read the normed residual stream and add their updates."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from configs import objects
from model.attention import variant
from model.axes import RESIDUAL
from model.cache import Layer, remember
from model.compute import Compute
from model.config import ModelConfig
from model.heads import Heads
from model.masks import Mask
from model.mlp import mlp
from model.norms import Norm
from model.parameter import Declare

# The name by which a remat policy finds the residual stream before a block.
BLOCK_INPUT = "block_input"


class Block(nnx.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))``, or both from one norm in parallel."""

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute, window: int | None):
        """Declares one block whose queries see ``window`` keys."""
        self.config = config
        self.compute = compute
        self.window = window
        width = config.embed_dim
        self.attention_norm = Norm(config, declare.inside("attention_norm"), compute, width)
        self.attention = variant(config.attention)(config, declare.inside("attention"), compute)
        has_mlp = config.mlp != "none"
        norms = has_mlp and not config.parallel_blocks
        self.mlp_norm = Norm(config, declare.inside("mlp_norm"), compute, width) if norms else None
        self.mlp = mlp(config.mlp)(config, declare.inside("mlp"), compute) if has_mlp else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Mask,
        cache: Layer | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Layer | None]:
        """Returns the residual stream after the block, and the cache.

        Args:
          x: the residual stream.
          positions: of each token in its document.
          mask: which key a query sees; this layer's window is added.
          cache: this layer's keys and values of the tokens before, when decoding.
          key: of dropout; None does not drop.
        """
        x = checkpoint_name(x, BLOCK_INPUT)
        first, second = (None, None) if key is None else jax.random.split(key)
        normed = self.attention_norm(x)
        heads = self.attention.project(normed, positions)
        of_variant = f"model.attention = {self.config.attention!r}"
        objects.check_type(heads, Heads, f"{of_variant}: project")
        if cache is not None:
            heads, cache = remember(cache, heads, mask, self.compute)
        mixed = self.attention.attend(heads, mask.within(self.window))
        objects.check_type(mixed, jax.Array, f"{of_variant}: attend")
        x = self._add(x, self.attention.write(normed, mixed), "attention", first)
        if self.mlp is None:
            return x, cache
        normed = normed if self.mlp_norm is None else self.mlp_norm(x)
        return self._add(x, self.mlp(normed), "mlp", second), cache

    def _add(self, x: Array, update: Array, field: str, key: Array | None) -> Array:
        writer = f"model.{field} = {getattr(self.config, field)!r} writes"
        objects.check_result(update, x.shape, writer, f"return the updates of the stream {x.shape}")
        update = self.compute.dropout(update.astype(x.dtype), self.config.dropout, key, RESIDUAL)
        return x + self.compute.reshard(update, RESIDUAL)
