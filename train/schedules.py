"""Learning-rate schedules: pure functions of the step and of numbers that may be traced."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from train.numbers import Numbers


def cosine(step: Float[Array, ""], n: Numbers) -> Float[Array, ""]:
    """Half a cosine from 1 after the warm-up to the final fraction (Loshchilov and Hutter 2017)."""
    falling = 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, n.warmup_steps, n.steps)))
    return n.final_fraction + (1 - n.final_fraction) * falling


def linear(step: Float[Array, ""], n: Numbers) -> Float[Array, ""]:
    """A line from 1 after the warm-up to the final fraction."""
    return 1 - (1 - n.final_fraction) * _progress(step, n.warmup_steps, n.steps)


def warmup_stable_decay(step: Float[Array, ""], n: Numbers) -> Float[Array, ""]:
    """1 until the last ``decay_fraction`` of the steps, then a line to the final fraction.

    Hu et al. 2024, "MiniCPM", section 4.2.
    """
    start = n.steps * (1 - n.decay_fraction)
    return 1 - (1 - n.final_fraction) * _progress(step, start, n.steps)


def constant(step: Float[Array, ""], n: Numbers) -> Float[Array, ""]:
    """1 throughout."""
    del n
    return jnp.ones_like(step)


SCHEDULES = {
    "cosine": cosine,
    "linear": linear,
    "warmup_stable_decay": warmup_stable_decay,
    "constant": constant,
}


def multiplier(name: str, step: Int[Array, ""], numbers: Numbers) -> Float[Array, ""]:
    """Returns what multiplies the peak learning rate at a step, the warm-up included.

    Step 0 takes 1 / warmup_steps of the peak, so that no step is without effect.

    Args:
      name: of a schedule.
      step: steps taken before.
      numbers: may be traced.
    """
    at = step.astype(jnp.float32)
    warm = jnp.minimum(1.0, (at + 1) / jnp.maximum(numbers.warmup_steps, 1))
    return warm * SCHEDULES[name](at, numbers)


def _progress(step: Array, start: Array, end: Array) -> Array:
    # The last step of the run is `end - 1`; it takes the final fraction.
    return jnp.clip((step - start) / jnp.maximum(end - 1 - start, 1), 0, 1)
