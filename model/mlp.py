"""The MLP of a block: two or three matrices around a nonlinearity."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from configs import objects
from model.axes import RESIDUAL
from model.compute import Compute
from model.config import ModelConfig
from model.parameter import Declare

HIDDEN = ("batch", "length", "mlp")


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
        up, down = (
            None if b is None else b[...][None, None] for b in (self.up_bias, self.down_bias)
        )
        matrices = [self.up] if self.gate is None else [self.up, self.gate]
        axes, biases = [HIDDEN] * len(matrices), [up, None][: len(matrices)]
        hidden, *gate = compute.einsums("btd,df->btf", x, matrices, axes=axes, biases=biases)
        # The backward pass computes the nonlinearity again.
        hidden = jax.checkpoint(self._nonlinear)(hidden, gate[0] if gate else None)
        return compute.einsum("btf,fd->btd", hidden, self.down, axes=RESIDUAL, bias=down)

    def _nonlinear(
        self, hidden: Float[Array, "B T F"], gate: Float[Array, "B T F"] | None
    ) -> Float[Array, "B T F"]:
        """Applies the nonlinearity in the accumulation dtype."""
        wide = hidden.astype(self.compute.accumulation_dtype)
        if gate is not None:
            return (jax.nn.silu(gate.astype(wide.dtype)) * wide).astype(hidden.dtype)
        return jax.nn.gelu(wide, approximate=self.kind == "gelu_tanh").astype(hidden.dtype)


def mlp(name: str) -> Any:
    """Returns ``MLP`` for an activation of it; for "module:Class" one's own, used as ``MLP`` is.

    Raises:
      UserError: there is no such class.
    """
    if ":" not in name:
        return MLP
    return objects.load(name, "model.mlp", (), 3, {"nnx.Module": nnx.Module}, {"__call__": 1})
