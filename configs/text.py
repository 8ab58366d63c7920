"""Your own text, character by character: a small model of the size that people begin with.

    python -m train --config=configs/text.py --workdir=runs/text --config.data.path=book.txt

Four layers of four heads, 128 wide, 64 characters of context, 2,000 steps of 12 sequences: the
CPU setting of nanoGPT's Shakespeare example. The last tenth of the text is held out.
``configs/text.py:nanogpt`` takes that example's architecture and optimizer too (learned
positions, LayerNorm without biases, tied embedding, AdamW); the default takes what did better
here in as many steps.
"""

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError


def get_config(settings: str = "best") -> ConfigDict:
    """Returns the config with "best" or "nanogpt" settings.

    Raises:
      UserError: the argument is neither.
    """
    if settings not in ("best", "nanogpt"):
        raise UserError(f"configs/text.py:{settings} is unknown; use :best or :nanogpt.")
    config = base.get_config()
    config.steps = 2000
    config.batch_size = 12
    config.length = 64
    config.steps_per_call = 10
    config.data.source = "files"
    config.data.path = ""
    config.data.tokenizer = "char"
    config.data.held_out = "tail"
    config.data.rows = "stream"
    config.data.validation = 0.1
    config.model.embed_dim = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.sample.prompts = ("\n",)
    config.sample.tokens = 300
    if settings == "nanogpt":
        config.model.positions = "learned"
        config.model.norm = "layernorm"
        config.model.mlp = "gelu_erf"
        config.model.tie_embeddings = True
        config.optim.learning_rate = 1e-3
        config.optim.b2 = 0.99
        config.optim.warmup_steps = 100
        config.optim.final_fraction = 0.1
        return config
    config.model.mlp = "swiglu"
    config.model.mlp_dim = 344
    config.model.query_key_norm = True
    config.optim.name = "muon"
    config.optim.learning_rate = 3e-3
    config.optim.muon_learning_rate = 0.02
    config.optim.warmup_steps = 50
    config.optim.final_fraction = 0.0
    return config
