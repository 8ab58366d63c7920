"""Attention sinks: a learned logit of each head that a query may attend to, and reads nothing.

    python -m train --config=configs/toy.py --workdir=runs/sinks \
      --config.model.attention=model.variants.sinks:Sinks

So a head that finds nothing need not read something: the softmax's denominator has one more term
(OpenAI 2025, "gpt-oss-120b & gpt-oss-20b model card", section 2.2; Miller 2023, "Attention is off
by one", with a logit of 0).
"""

import dataclasses

from model.attention import Multihead
from model.compute import Compute
from model.config import ModelConfig
from model.heads import Heads
from model.masks import Mask
from model.parameter import Declare
from model.pattern import Pattern


class Sinks(Multihead):
    """``exp(score) / (exp(sink[h]) + sum over keys of exp(score))``."""

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Declares what heads have, and a sink of each [H]."""
        super().__init__(config, declare, compute)
        self.sink = declare.bias("sink", (config.num_heads,), ("heads",))

    def pattern(self, heads: Heads, mask: Mask) -> Pattern:
        """Returns the pattern with the sinks."""
        return dataclasses.replace(super().pattern(heads, mask), sink=self.sink[...])
