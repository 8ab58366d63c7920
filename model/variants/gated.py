"""An output gate for each head and token: what a head read is written in the measure of a gate.

    python -m train --config=configs/toy.py --workdir=runs/gated \
      --config.model.attention=model.variants.gated:Gated

Qiu et al. 2025, "Gated attention for large language models", their head-wise gate.
"""

import jax
from jaxtyping import Array, Float

from model.attention import Multihead
from model.axes import QUERIES
from model.compute import Compute
from model.config import ModelConfig
from model.parameter import Declare


class Gated(Multihead):
    """``update = sum over h of sigmoid(x gate[h]) mixed[h] value_up[h]``."""

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Declares what heads have, and their gates [D, H]."""
        super().__init__(config, declare, compute)
        shape = (config.embed_dim, config.num_heads)
        self.gate = declare.matrix("gate", shape, ("embed", "heads"), contracted="embed")

    def write(
        self, x: Float[Array, "B T D"], mixed: Float[Array, "B H T R"]
    ) -> Float[Array, "B T D"]:
        """Returns the sum over heads of the gated updates."""
        gate = self.compute.einsum("btd,dh->bht", x, self.gate, axes=QUERIES[:3])
        return super().write(x, jax.nn.sigmoid(gate)[..., None] * mixed)
