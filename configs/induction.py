"""Induction heads: two attention-only layers learn to continue what repeats.

    python -m train --config=configs/induction.py --workdir=runs/induction

Rows of distinct random tokens that repeat with a period drawn from 4 to 16; what the second
half needs is a head that finds the earlier copy of a token and reads what came after it
(Olsson et al. 2022, "In-context learning and induction heads"). ``:1`` makes a model of one
layer, which cannot; ``:2`` is the default.
"""

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError


def get_config(layers: str = "2") -> ConfigDict:
    """Returns the config for a number of layers.

    Raises:
      UserError: the argument is no number of layers.
    """
    if not layers.isdecimal() or int(layers) < 1:
        raise UserError(f"configs/induction.py:{layers} needs a number of layers, such as :2.")
    config = base.get_config()
    config.steps = 1000
    config.batch_size = 32
    config.length = 32
    config.steps_per_call = 20
    config.data.source = "repeats"
    config.data.periods = (4, 16)
    config.data.rows = "stream"
    config.model.num_layers = int(layers)
    config.model.num_heads = 4
    config.model.embed_dim = 64
    config.model.head_dim = 32
    config.model.vocab_size = 64
    config.model.mlp = "none"
    config.model.norm = "rmsnorm"
    config.model.positions = "rotary"
    config.model.rotary_base = 100.0
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 50
    config.optim.final_fraction = 0.0
    config.optim.weight_decay = 0.01
    return config
