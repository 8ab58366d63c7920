"""A first sweep: learning rates and seeds of the toy, for a few steps each.

python -m launch.sweep --config=configs/sweeps/toy.py --workdir=runs/sweep
"""

from typing import Any

from ml_collections import ConfigDict

from configs import toy


def get_config() -> ConfigDict:
    """Returns the toy with fewer steps."""
    config = toy.get_config()
    config.steps = 100
    config.log.eval_every = 0
    config.log.tensorboard = False
    return config


def get_hyper(hyper: Any) -> list[dict[str, Any]]:
    """Returns two learning rates times two seeds."""
    return hyper.product(
        hyper.choices("optim.learning_rate", [1e-3, 3e-3]),
        hyper.choices("seed", [0, 1]),
    )
