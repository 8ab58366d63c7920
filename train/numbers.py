"""The numbers of ``config.optim`` as arrays: changing one recompiles nothing."""

import dataclasses
import math
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from configs.errors import UserError
from train.schedules import ScheduleNumbers


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of ``config.optim`` in float32; of each of its multipliers (rate, decay)."""

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
    schedule: ScheduleNumbers

    @classmethod
    def of(cls, config: ConfigDict) -> "Numbers":
        """Returns the numbers of a whole config, checked.

        Raises:
          UserError: a number is out of its range.
        """
        optim = config.optim
        floats = {name: value for name, value in optim.items() if isinstance(value, float)}
        with np.errstate(over="ignore", under="ignore"):
            rounded = {name: float(np.float32(value)) for name, value in floats.items()}
            factors = np.array([pair for _, *pair in optim.multipliers], np.float32)
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "clip", "z_loss"):
            if not 0 <= rounded[name] < math.inf:
                raise UserError(
                    f"optim.{name} = {optim[name]} must be at least 0, and finite in float32."
                )
        for name in ("b1", "b2", "muon_momentum", "ema"):
            if not 0 <= rounded[name] < 1:
                raise UserError(f"optim.{name} = {optim[name]} must be at least 0 and below 1.")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= rounded[name] <= 1:
                raise UserError(f"optim.{name} = {optim[name]} must lie between 0 and 1.")
        if optim.warmup_steps < 0:
            raise UserError(f"optim.warmup_steps = {optim.warmup_steps} must be at least 0.")
        if not 0 < rounded["eps"] < math.inf:
            raise UserError(f"optim.eps = {optim.eps} must be positive and finite in float32.")
        if not ((factors >= 0) & (factors < math.inf)).all():
            raise UserError(
                f"optim.multipliers = {optim.multipliers!r} must multiply by numbers of at least "
                "0, finite in float32."
            )

        def number(value: int | float) -> Array:
            return jnp.asarray(value, jnp.float32)

        scalars = {f.name for f in dataclasses.fields(cls)} - {"schedule", "multipliers"}
        return cls(
            schedule=ScheduleNumbers(
                steps=number(config.steps),
                warmup_steps=number(optim.warmup_steps),
                final_fraction=number(optim.final_fraction),
                decay_fraction=number(optim.decay_fraction),
            ),
            multipliers=jnp.asarray(factors.reshape(-1, 2)),
            **{name: number(optim[name]) for name in scalars},
        )
