"""Differential attention: the difference of two patterns, in which what both see cancels.

    python -m train --config=configs/toy.py --workdir=runs/differential \
      --config.model.attention=model.variants.differential:Differential

Ye et al. 2024, "Differential Transformer", equations 1 to 3. As there a head has two pairs of
queries and keys, one set of values and a norm of its own. Otherwise than there, the exponents are
a number a head and not the product of two vectors, and START is the same in all layers.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from configs.errors import UserError
from model.attention import Multihead
from model.backends import choice
from model.compute import Compute
from model.config import ModelConfig
from model.heads import Heads
from model.masks import Mask
from model.norms import Norm
from model.parameter import Declare

# What the second pattern weighs at the start.
START = 0.8


class Differential(Multihead):
    """``mixed = (1 - START) norm((A1 - weight[h] A2) v)``.

    ``weight = exp(first) - exp(second) + START``. A1 is the pattern of the even coordinates of
    queries and keys, A2 that of the odd ones: rotary positions turn each among themselves.
    """

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Declares what heads have, two numbers of each [H], and the norm of what they read.

        Raises:
          UserError: queries do not halve into pairs that rotary positions turn.
        """
        if config.head_dim % 4:
            raise UserError(
                f"model.head_dim = {config.head_dim} must be a multiple of 4: differential "
                "attention halves it into pairs."
            )
        super().__init__(config, declare, compute)
        heads = config.num_heads
        self.first = declare.bias("first", (heads,), ("heads",))
        self.second = declare.bias("second", (heads,), ("heads",))
        plain = dataclasses.replace(config, norm="rmsnorm")
        width = config.embed_dim if self.full else config.value_dim
        self.mixed_norm = Norm(plain, declare.inside("mixed_norm"), compute, width)

    def attend(self, heads: Heads, mask: Mask) -> Float[Array, "B H T R"]:
        """Returns what each head reads by the difference of its patterns."""
        name, pattern = self.config.attention_backend, self.pattern(heads, mask)

        def read(half: int) -> Float[Array, "B H T R"]:
            q, k = heads.query[..., half::2], heads.key[..., half::2]
            return choice.attend(name, Heads(q, k, heads.value), mask, pattern, self.compute)

        weight = jnp.exp(self.first[...]) - jnp.exp(self.second[...]) + START
        more, less = read(0), read(1)
        mixed = more - weight[None, :, None, None].astype(more.dtype) * less
        return (1 - START) * self.mixed_norm(mixed)
