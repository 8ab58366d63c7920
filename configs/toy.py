"""The lecture grammar on a laptop: trains in about a minute on two cores.

python -m train --config=configs/toy.py --workdir=runs/toy
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the toy."""
    config = base.get_config()
    config.steps = 800
    config.batch_size = 32
    config.length = base.GRAMMAR_LENGTH
    config.steps_per_call = 10
    config.model.embed_dim = 64
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.model.rotary_base = 100.0
    config.optim.name = "muon"
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 50
    config.optim.final_fraction = 0.0
    config.sample.prompts = (
        "anna saw the american mole . it",
        "the chemist remembered the old mole . it",
        "a fluffy blue creature roamed the verdant forest . the creature was",
        "at midnight the judge died . there was soil on the dagger .",
    )
    config.sample.tokens = 30
    return config
