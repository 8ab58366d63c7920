"""Accidents found on the device, in the step: what is not finite, and spikes.

A spike is a loss, or a norm of the gradient, that lies so many sample standard deviations above the
mean of those of the last good steps, as in OLMo-core's ``SkipStepOptimizer`` and Levanter's
``SkipStepConfig``. What was no good step does not enter the mean.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree
from ml_collections import ConfigDict

from train.numbers import Numbers

# What an accident is, by its code; where several hold, the first. 0 is a good step.
KINDS = ("", "loss", "gradient", "state", "loss spike", "gradient spike")
WATCHED = ("loss", "grad_norm")  # of which the last are remembered
CODE = "accident"

Recent = dict[str, Array]
Figures = dict[str, Float[Array, ""]]


def window(config: ConfigDict) -> int:
    """Returns how many good steps a run remembers for spikes; 0 where it looks for none."""
    accidents = config.accidents
    return accidents.window if accidents.spike > 0 or accidents.gradient_spike > 0 else 0


def watched(config: ConfigDict) -> bool:
    """Tells whether the step itself looks for accidents; else the host reads its figures."""
    return config.accidents.policy != "stop" or window(config) > 0


def figures(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the figures that ``judge`` gives of a step; none if nothing is watched.

    ``accident`` is a place in ``KINDS``; the others are what a spike was measured by.
    """
    statistics = [f"{name}_{part}" for name in WATCHED for part in ("mean", "deviation")]
    return (CODE, *(statistics if window(config) else ())) if watched(config) else ()


def fresh(length: int) -> Recent:
    """Returns the memory of so many steps before the first; empty where there is none."""
    if not length:
        return {}
    return {name: jnp.zeros(length) for name in WATCHED} | {"count": jnp.zeros((), jnp.int32)}


def judge(
    recent: Recent, loss: Float[Array, ""], norm: Float[Array, ""], finite: Array, numbers: Numbers
) -> tuple[Recent, Figures]:
    """Finds whether a step was an accident.

    Args:
      recent: of ``fresh`` and the steps since; empty where no spikes are looked for.
      loss: of the step, nats a token.
      norm: of its gradient.
      finite: whether all of the state after it is.
      numbers: whose ``spikes`` are the thresholds; where one is 0, none is looked for.

    Returns:
      The memory with this step, unless it was an accident, and the ``figures``.
    """
    checks = [~jnp.isfinite(loss), ~jnp.isfinite(norm), ~finite]
    found: Figures = {}
    if recent:
        length = recent[WATCHED[0]].shape[0]
        assert numbers.spikes is not None
        for name, value, threshold in zip(WATCHED, (loss, norm), numbers.spikes, strict=True):
            mean, deviation = recent[name].mean(), recent[name].std(ddof=1)
            found |= {f"{name}_mean": mean, f"{name}_deviation": deviation}
            far = value > mean + threshold * deviation
            checks.append((recent["count"] >= length) & (threshold > 0) & far)
    bad = jnp.stack(checks)
    code = jnp.where(bad.any(), 1 + bad.argmax(), 0)
    if recent:
        place = recent["count"] % length
        added = {
            name: recent[name].at[place].set(value)
            for name, value in zip(WATCHED, (loss, norm), strict=True)
        }
        recent = unless(code > 0, recent, added | {"count": recent["count"] + 1})
    return recent, {CODE: code.astype(jnp.float32)} | found


def unless(bad: Bool[Array, ""], before: PyTree, after: PyTree) -> Any:
    """Returns what is after, or, where it was bad, what was before."""
    return jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, after)
