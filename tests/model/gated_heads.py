"""An attention variant in one file: each head has an output gate that reads the residual."""

import jax

from model.attention import QUERIES, Multihead


class GatedHeads(Multihead):
    """``update[h] = sigmoid(x gate[h]) * (A v) value_up[h]``."""

    def __init__(self, config, declare, compute, window):
        """Declares what a head has, and its gate [D, H]."""
        super().__init__(config, declare, compute, window)
        shape, axes = (config.embed_dim, config.num_heads), ("embed", "heads")
        self.gate = declare.matrix("gate", shape, axes, contracted="embed")

    def write(self, x, mixed):
        """Returns the sum over heads of the gated updates."""
        gate = self.compute.einsum("btd,dh->bht", x, self.gate, axes=QUERIES[:3])
        return super().write(x, jax.nn.sigmoid(gate)[..., None] * mixed)
