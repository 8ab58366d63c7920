"""ALiBi: logits fall with the distance of the key, by a slope of each head.

    python -m train --config=configs/toy.py --workdir=runs/alibi \
      --config.model.attention=model.variants.alibi:ALiBi --config.model.positions=none

Press et al. 2022, "Train short, test long", section 3.
"""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
from jaxtyping import Array

from model.attention import Multihead
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern


class ALiBi(Multihead):
    """``logit - 2^(-8 (h + 1) / H) distance``; it has no parameters of its own."""

    def pattern(self, heads: Heads, mask: Mask) -> Pattern:
        """Returns the pattern with the slopes of all heads."""
        count = self.config.num_heads
        slopes = 2.0 ** (-8.0 * jnp.arange(1, count + 1) / count)
        plain = super().pattern(heads, mask)
        return dataclasses.replace(plain, score=_nearer, head=dict(slope=slopes))


def _nearer(
    logit: Array, query: SimpleNamespace, key: SimpleNamespace, head: SimpleNamespace
) -> Array:
    return logit - head.slope * (query.position - key.position)
