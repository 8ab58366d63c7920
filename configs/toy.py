"""The lecture grammar on a laptop: trains in about a minute on two cores.

python -m train --config=configs/toy.py --workdir=runs/toy
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the toy."""
    config = base.get_config()
    config.steps = 1000
    config.batch_size = 32
    config.length = base.GRAMMAR_LENGTH
    config.steps_per_call = 10
    config.model.embed_dim = 64
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.optim.learning_rate = 3e-3
    config.sample.prompts = ("the mole", "the fluffy blue")
    return config
