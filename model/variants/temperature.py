"""A temperature of each head, learned: how sharp its pattern is.

    python -m train --config=configs/toy.py --workdir=runs/temperature \
      --config.model.attention=model.variants.temperature:Temperature
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.attention import Multihead
from model.compute import Compute
from model.config import ModelConfig
from model.heads import Heads
from model.parameter import Declare


class Temperature(Multihead):
    """``softmax(q k^T / (sqrt(K) exp(log_temperature[h])))``."""

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Declares what heads have, and the logarithm of each one's temperature [H]."""
        super().__init__(config, declare, compute)
        heads = config.num_heads
        self.log_temperature = declare.bias("log_temperature", (heads,), ("heads",))

    def project(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Heads:
        """Returns queries divided by the temperature, keys and values."""
        heads = super().project(x, positions)
        scale = jnp.exp(-self.log_temperature[...])[None, :, None, None]
        return dataclasses.replace(heads, query=heads.query * scale.astype(heads.query.dtype))
