"""The shapes that are measured: GPT-2's network in three sizes, for this project and its peers."""

import dataclasses

from ml_collections import ConfigDict

from configs import base


@dataclasses.dataclass(frozen=True)
class Shape:
    """A network as GPT-2 has it (LayerNorm, biases, tanh GELU, tied embeddings), and a batch.

    Attributes:
      layers: blocks.
      heads: a block.
      width: of the residual stream.
      length: tokens of a sequence.
      batch: sequences a step.
      vocab: tokens there are.
      steps: training steps in a round of the comparison.
    """

    layers: int
    heads: int
    width: int
    length: int
    batch: int
    vocab: int
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length


# Tokens of a context so short that memory is what libraries and compilers take.
FEW = 128

SHAPES = {
    "small": Shape(4, 4, 128, 64, 12, 65, 40),
    "medium": Shape(6, 6, 384, 256, 8, 65, 2),
    "124m": Shape(12, 12, 768, 1024, 1, 50257, 2),
}


def config(name: str, dtype: str) -> ConfigDict:
    """Returns this project's config of a shape; everything that is not GPT-2's keeps its default.

    Args:
      name: of the shape.
      dtype: of operands and activations.
    """
    shape = SHAPES[name]
    config = base.get_config()
    config.batch_size, config.length = shape.batch, shape.length
    config.steps_per_call = min(10, shape.steps)
    model = config.model
    model.num_layers, model.num_heads, model.embed_dim = shape.layers, shape.heads, shape.width
    model.vocab_size, model.max_length = shape.vocab, shape.length
    model.positions, model.norm, model.mlp = "learned", "layernorm", "gelu_tanh"
    model.biases = model.tie_embeddings = True
    model.dtype = dtype
    config.optim.update(dict(schedule="constant", warmup_steps=0, learning_rate=3e-4))
    return config
