"""The numbers of a config as arrays: changing one recompiles nothing."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict


class Numbers(NamedTuple):
    """The numbers of ``config.optim``, ``config.steps`` and the spikes' thresholds in float32.

    ``multipliers`` has the factors of rate and decay of each pattern; without thresholds there
    are none, so that a run that looks for no spikes has no more to hand on.
    """

    learning_rate: Float[Array, ""]
    muon_learning_rate: Float[Array, ""]
    muon_momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    b1: Float[Array, ""]
    b2: Float[Array, ""]
    eps: Float[Array, ""]
    clip: Float[Array, ""]
    z_loss: Float[Array, ""]
    ema: Float[Array, ""]
    multipliers: Float[Array, "patterns 2"]
    steps: Float[Array, ""]
    warmup_steps: Float[Array, ""]
    final_fraction: Float[Array, ""]
    decay_fraction: Float[Array, ""]
    spikes: Float[Array, "2"] | None = None  # of loss and gradient norm, in standard deviations

    @classmethod
    def of(cls, config: ConfigDict) -> "Numbers":
        """Returns the numbers of a whole config."""
        factors = [pair for _, *pair in config.optim.multipliers]
        spikes = config.accidents.spike, config.accidents.gradient_spike
        values = dict(config.optim, steps=config.steps, multipliers=factors, spikes=spikes)
        arrays = {name: jnp.asarray(values[name], jnp.float32) for name in cls._fields}
        found = cls(**arrays | {"multipliers": arrays["multipliers"].reshape(-1, 2)})
        return found if any(spikes) else found._replace(spikes=None)
