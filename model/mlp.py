"""The MLP of a block: two or three matrices around a nonlinearity."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from model.compute import Compute
from model.config import ModelConfig
from model.parameter import Declare

HIDDEN = ("batch", "length", "mlp")
RESIDUAL = ("batch", "length", None)


class MLP(nnx.Module):
    """``down(gelu(x up))``, or ``down(silu(x gate) * (x up))`` for "swiglu" (Shazeer 2020).

    "gelu_tanh" is the approximation of Hendrycks and Gimpel (2016) that GPT-2 uses,
    "gelu_erf" the exact function.
    """

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Args: the model's config, what makes the parameters, and the arithmetic."""
        d, f = config.embed_dim, config.mlp_dim
        self.kind = config.mlp
        self.compute = compute
        self.up = declare.matrix("up", (d, f), ("embed", "mlp"), "embed")
        swiglu = self.kind == "swiglu"
        self.gate = declare.matrix("gate", (d, f), ("embed", "mlp"), "embed") if swiglu else None
        # Each of 2 L updates adds its share of the residual stream's variance (GPT-2, section 2.3).
        depth = (2 * config.num_layers) ** -0.5
        self.down = declare.matrix("down", (f, d), ("mlp", "embed"), "mlp", gain=depth)
        self.up_bias = declare.bias("up_bias", (f,), ("mlp",)) if config.biases else None
        self.down_bias = declare.bias("down_bias", (d,), (None,)) if config.biases else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the update that the MLP writes for each normed residual."""
        compute = self.compute
        hidden = compute.einsum("btd,df->btf", x, self.up, axes=HIDDEN)
        if self.up_bias is not None:
            hidden = hidden + self.up_bias[...].astype(hidden.dtype)[None, None]
        if self.gate is not None:
            gate = compute.einsum("btd,df->btf", x, self.gate, axes=HIDDEN)
            hidden = jax.nn.silu(gate) * hidden
        else:
            hidden = jax.nn.gelu(hidden, approximate=self.kind == "gelu_tanh")
        update = compute.einsum("btf,fd->btd", hidden, self.down, axes=RESIDUAL)
        if self.down_bias is not None:
            update = update + self.down_bias[...].astype(update.dtype)[None, None]
        return update
