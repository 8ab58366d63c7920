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
    # Muon's matrices take one rate, all other parameters the other, 0.15 times as large in the toy.
    rates = [0.01, 0.02]
    return hyper.product(
        hyper.zip(
            hyper.choices("optim.muon_learning_rate", rates),
            hyper.choices("optim.learning_rate", [0.15 * rate for rate in rates]),
        ),
        hyper.choices("seed", [0, 1]),
    )
