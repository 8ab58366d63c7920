"""One block: attention and MLP read the normed residual stream and add their updates."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from model.attention import RESIDUAL, variant
from model.cache import Layer
from model.compute import Compute
from model.config import ModelConfig
from model.masks import Mask
from model.mlp import MLP
from model.norms import Norm
from model.parameter import Declare


class Block(nnx.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))``, or both from one norm in parallel."""

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute, window: int | None):
        """Declares one block whose queries see ``window`` keys."""
        self.config = config
        self.compute = compute
        width = config.embed_dim
        self.attention_norm = Norm(config, declare.inside("attention_norm"), compute, width)
        self.attention = variant(config.attention)(
            config, declare.inside("attention"), compute, window
        )
        has_mlp = config.mlp != "none"
        norms = has_mlp and not config.parallel_blocks
        self.mlp_norm = Norm(config, declare.inside("mlp_norm"), compute, width) if norms else None
        self.mlp = MLP(config, declare.inside("mlp"), compute) if has_mlp else None

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
          mask: which key a query sees.
          cache: this layer's, when decoding.
          key: of dropout; None does not drop.
        """
        first, second = (None, None) if key is None else jax.random.split(key)
        normed = self.attention_norm(x)
        update, cache = self.attention(normed, positions, mask, cache)
        rate = self.config.dropout
        after = x + self.compute.dropout(update, rate, first, RESIDUAL)
        if self.mlp is None:
            return after, cache
        normed = normed if self.mlp_norm is None else self.mlp_norm(after)
        update = self.mlp(normed)
        return after + self.compute.dropout(update, rate, second, RESIDUAL), cache
