"""Talking heads: the logits of all heads are mixed before the softmax.

    python -m train --config=configs/toy.py --workdir=runs/talking \
      --config.model.attention=model.variants.talking:Talking

Shazeer et al. 2020, "Talking-heads attention", section 3, their projection of the logits. Each
pattern needs the logits of all heads, so they are held whole: memory grows with T S.
"""

from jaxtyping import Array, Float

from configs.errors import UserError
from model.attention import Multihead
from model.axes import QUERIES
from model.backends import dense
from model.compute import Compute
from model.config import ModelConfig
from model.heads import Heads
from model.masks import Mask
from model.parameter import Declare


class Talking(Multihead):
    """``softmax(mask(sum over h of talk[h, g] q[h] k[h]^T / sqrt(K)))`` for head g."""

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Declares what heads have, and the matrix by which they talk [H, H].

        Raises:
          UserError: the backend of the config does not hold whole patterns.
        """
        if config.attention_backend not in ("auto", "dense"):
            raise UserError(
                f"model.attention_backend = {config.attention_backend!r} cannot be used: talking "
                "heads mix the logits of all; set 'dense' or 'auto'."
            )
        super().__init__(config, declare, compute)
        heads = config.num_heads
        self.talk = declare.matrix("talk", (heads, heads), ("heads", "talking"), "heads")

    def attend(self, heads: Heads, mask: Mask) -> Float[Array, "B H T R"]:
        """Returns what each head reads by its mixed logits."""
        compute = self.compute
        logits = dense.logits(heads.query, heads.key, compute)
        wide = compute.accumulation_dtype
        mixed = compute.einsum("bhts,hg->bgts", logits, self.talk, axes=QUERIES, dtype=wide)
        pattern = dense.softmax(mixed, mask, self.pattern(heads, mask))
        return dense.mix(pattern, heads.value, compute)
