"""GPT-3: the eight rows of table 2.1 of Brown et al. 2020 (arXiv 2005.14165).

    python -m train --config=configs/gpt3.py:125m --workdir=runs/gpt3-125m \\
      --config.data.path='corpus/*.txt' --config.data.tokenizer=gpt2/tokenizer.json \\
      --config.mesh.heads=4

The argument names the row: 125m 350m 760m 1.3b 2.7b 6.7b 13b 175b. ``data.path`` and
``data.tokenizer`` (GPT-2's tokenizer.json, 50257 tokens) are the user's to set.

As in the paper: layers, width, heads, head width, learning rate, 300 billion tokens, a
warm-up over 375 million, a cosine to a tenth, AdamW with betas 0.9 and 0.95, clip 1.0 and
weight decay 0.1, alternating dense and locally banded layers, documents joined into
one long text.

Otherwise than in the paper:
- Batches of 0.5, 1, 2 and 3.2 million tokens become 256, 512, 1024 and 1536 sequences of
  2048, and do not grow at the start of a run.
- The cosine ends with the run, at 300 billion tokens; the paper's ends at 260 billion and
  stays there.
- The band is 256 tokens wide: the paper does not say how wide its own is.
- 13b has width 5120 = 40 x 128; the table's 5140 is no multiple of its 40 heads of 128.
- 1.3b has the table's 24 heads of 128 at width 2048, together 3072, and so about 1.5
  billion parameters.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError, nearest

LENGTH = 2048
TOKENS = 300e9
WARMUP_TOKENS = 375e6


class Row(NamedTuple):
    """One row of the table."""

    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    batch_size: int  # sequences
    learning_rate: float  # peak
    # Chips on which ``launch.plan`` finds that it fits, nothing recomputed but elementwise
    # functions, with so many shards of heads and microbatches.
    topology: str
    heads: int
    accumulate: int


ROWS = {
    "125m": Row(12, 768, 12, 64, 256, 6.0e-4, "v5e:2x2", 1, 4),
    "350m": Row(24, 1024, 16, 64, 256, 3.0e-4, "v5e:2x4", 1, 4),
    "760m": Row(24, 1536, 16, 96, 256, 2.5e-4, "v5e:4x4", 1, 4),
    "1.3b": Row(24, 2048, 24, 128, 512, 2.0e-4, "v5e:4x4", 1, 8),
    "2.7b": Row(32, 2560, 32, 80, 512, 1.6e-4, "v5e:4x8", 1, 8),
    "6.7b": Row(32, 4096, 32, 128, 1024, 1.2e-4, "v5p:4x4x4", 1, 2),
    "13b": Row(40, 5120, 40, 128, 1024, 1.0e-4, "v5p:4x4x4", 1, 4),
    "175b": Row(96, 12288, 96, 128, 1536, 0.6e-4, "v5p:4x4x8", 4, 12),
}


def get_config(row: str = "125m") -> ConfigDict:
    """Returns the config of one row.

    Raises:
      UserError: there is no such row.
    """
    if row not in ROWS:
        raise UserError(
            f"configs/gpt3.py has no row {row!r}{nearest(row, ROWS)}; choose one of "
            f"{', '.join(ROWS)}."
        )
    size = ROWS[row]
    config = base.get_config()
    config.batch_size = size.batch_size
    config.length = LENGTH
    config.steps = round(TOKENS / (size.batch_size * LENGTH))

    model = config.model
    model.num_layers = size.num_layers
    model.embed_dim = size.embed_dim
    model.num_heads = size.num_heads
    model.head_dim = size.head_dim
    model.mlp_dim = 4 * size.embed_dim
    model.vocab_size = 50257
    model.positions = "learned"
    model.window = (None, 256)
    model.norm = "layernorm"
    model.mlp = "gelu_tanh"
    model.biases = True
    model.tie_embeddings = True
    model.dtype = "bfloat16"
    model.remat = "matmuls"

    config.data.source = "files"
    config.data.tokenizer = ""
    config.data.rows = "stream"
    config.data.held_out = "tail"
    config.data.validation = 0.001

    config.optim.learning_rate = size.learning_rate
    config.optim.warmup_steps = round(WARMUP_TOKENS / (size.batch_size * LENGTH))
    config.optim.schedule = "cosine"
    config.optim.final_fraction = 0.1
    config.optim.weight_decay = 0.1
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.eps = 1e-8
    config.optim.clip = 1.0

    config.optim.accumulate = size.accumulate

    config.mesh.fsdp = -1
    config.mesh.heads = size.heads
    config.mesh.residual = "sharded" if size.heads > 1 else "replicated"
    config.checkpoint.every = 1_000
    config.checkpoint.minutes = 30.0  # a thousand steps of the largest are hours
    config.log.eval_every = 1_000
    return config
