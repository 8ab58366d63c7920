"""LayerNorm and RMSNorm over the residual stream, and RMSNorm of one head's vectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from model.compute import Compute
from model.config import ModelConfig
from model.parameter import Declare


class Norm(nnx.Module):
    """Scales each vector to unit size, then by a gain, and adds a bias where there is one.

    "layernorm" subtracts the mean first (Ba et al. 2016); "rmsnorm" does not (Zhang and
    Sennrich 2019). Means are taken in the accumulation dtype.
    """

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute, width: int):
        """Args: the config, what makes the parameters, the arithmetic, the vectors' size."""
        self.compute = compute
        self.centred = config.norm == "layernorm"
        self.epsilon = config.norm_epsilon
        self.gain = declare.gain("gain", (width,), (None,))
        biased = self.centred and config.biases
        self.bias = declare.bias("bias", (width,), (None,)) if biased else None

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normed vectors, in the type of x."""
        y = x.astype(self.compute.accumulation_dtype)
        if self.centred:
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        ahead = (1,) * (y.ndim - 1)
        y = y * self.gain[...].astype(y.dtype).reshape(*ahead, -1)
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype).reshape(*ahead, -1)
        return y.astype(x.dtype)
