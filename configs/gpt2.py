"""GPT-2: the four sizes of Radford et al. 2019, by the names of their released weights.

    python -m train --config=configs/gpt2.py:small --workdir=runs/gpt2 \\
      --config.data.path='corpus/*.txt' --config.data.tokenizer=gpt2/tokenizer.json

The argument names the size: small (124 million parameters), medium (355), large (774),
xl (1558). ``data.path`` and ``data.tokenizer`` (GPT-2's tokenizer.json, 50257 tokens) are
the user's to set.

As released: layers, width, heads, 1024 positions, vocabulary, and 512 sequences a batch.
The paper gives neither learning rates nor steps: those here are ours, the rates being
GPT-3's for the nearest size. It gives no dropout either: ours is 0.0, since a corpus of that
kind is read about once.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError, nearest


class Size(NamedTuple):
    """One of the released sizes; every head is 64 wide."""

    num_layers: int
    embed_dim: int
    num_heads: int
    learning_rate: float  # peak


SIZES = {
    "small": Size(12, 768, 12, 6.0e-4),
    "medium": Size(24, 1024, 16, 3.0e-4),
    "large": Size(36, 1280, 20, 2.5e-4),
    "xl": Size(48, 1600, 25, 2.0e-4),
}


def get_config(size: str = "small") -> ConfigDict:
    """Returns the config of one size.

    Raises:
      UserError: there is no such size.
    """
    if size not in SIZES:
        raise UserError(
            f"configs/gpt2.py has no size {size!r}{nearest(size, SIZES)}; choose one of "
            f"{', '.join(SIZES)}."
        )
    shape = SIZES[size]
    config = base.get_config()
    config.steps = 100_000
    config.batch_size = 512
    config.length = 1024

    model = config.model
    model.num_layers = shape.num_layers
    model.embed_dim = shape.embed_dim
    model.num_heads = shape.num_heads
    model.mlp_dim = 4 * shape.embed_dim
    model.vocab_size = 50257
    model.positions = "learned"
    model.norm = "layernorm"
    model.mlp = "gelu_tanh"
    model.biases = True
    model.tie_embeddings = True
    model.dropout = 0.0
    model.dtype = "bfloat16"
    model.remat = "block"

    config.data.source = "files"
    config.data.tokenizer = ""
    config.data.rows = "stream"
    config.data.held_out = "tail"
    config.data.validation = 0.001

    config.optim.learning_rate = shape.learning_rate
    config.optim.warmup_steps = 2_000

    config.mesh.fsdp = -1
    config.checkpoint.every = 1_000
    config.log.eval_every = 1_000
    return config
