"""A real book with learned sub-words: the King James text that a package ships.

    python -m train --config=configs/book.py --workdir=runs/book

Byte-level BPE of 2,048 tokens is trained on the chapters that are not held out.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the book."""
    config = base.get_config()
    config.steps = 1500
    config.batch_size = 16
    config.length = 128
    config.steps_per_call = 10
    config.data.source = "kjv"
    config.data.tokenizer = "bpe"
    config.data.tokenizer_vocab_size = 2048
    config.data.validation = 0.05
    config.data.held_out = "documents"
    config.data.rows = "stream"
    config.model.embed_dim = 192
    config.model.num_layers = 4
    config.model.num_heads = 6
    config.model.query_key_norm = True
    config.model.mlp = "swiglu"
    config.model.mlp_dim = 512
    config.optim.name = "muon"
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 50
    config.optim.final_fraction = 0.0
    config.sample.prompts = ("And it came to pass", "In the beginning")
    config.sample.tokens = 80
    return config
