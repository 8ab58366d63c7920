"""Optimizers from optax, with every number an argument of the step.

Parameters enter by name (``{"blocks.0.attention.query": array}``), so that an optimizer's
state reads alike in memory and on disk.
"""

import dataclasses
import math
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from configs.errors import UserError, nearest
from model.parameter import Declaration
from train import schedules
from train.schedules import ScheduleNumbers

NAMES = ("adamw", "lion", "adafactor", "muon")
DECAYED = ("matrix", "embedding", "unembedding")

Arrays = dict[str, Array]


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of ``config.optim``, as float32 arrays: changing one recompiles nothing."""

    learning_rate: Float[Array, ""]
    muon_learning_rate: Float[Array, ""]
    muon_momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    b1: Float[Array, ""]
    b2: Float[Array, ""]
    eps: Float[Array, ""]
    clip: Float[Array, ""]
    z_loss: Float[Array, ""]
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
            held = {name: float(np.float32(value)) for name, value in floats.items()}
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "clip", "z_loss"):
            if not 0 <= held[name] < math.inf:
                raise UserError(
                    f"optim.{name} = {optim[name]} must be at least 0, and finite in float32."
                )
        for name in ("b1", "b2", "muon_momentum"):
            if not 0 <= held[name] < 1:
                raise UserError(f"optim.{name} = {optim[name]} must be at least 0 and below 1.")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= held[name] <= 1:
                raise UserError(f"optim.{name} = {optim[name]} must lie between 0 and 1.")
        if optim.warmup_steps < 0:
            raise UserError(f"optim.warmup_steps = {optim.warmup_steps} must be at least 0.")
        if not 0 < held["eps"] < math.inf:
            raise UserError(f"optim.eps = {optim.eps} must be positive and finite in float32.")

        def number(value: int | float) -> Array:
            return jnp.asarray(value, jnp.float32)

        given = {f.name for f in dataclasses.fields(cls)} - {"schedule"}
        return cls(
            schedule=ScheduleNumbers(
                steps=number(config.steps),
                warmup_steps=number(optim.warmup_steps),
                final_fraction=number(optim.final_fraction),
                decay_fraction=number(optim.decay_fraction),
            ),
            **{name: number(optim[name]) for name in given},
        )


class Optimizer:
    """One of ``NAMES``, for the parameters of one model."""

    def __init__(self, name: str, schedule: str, declared: list[Declaration]):
        """Args: names as in ``config.optim``, and the declarations of the model.

        Raises:
          UserError: there is no such optimizer or schedule.
        """
        if name not in NAMES:
            raise UserError(
                f"optim.name = {name!r} is no optimizer{nearest(name, NAMES)}; "
                f"choose one of {', '.join(NAMES)}."
            )
        schedules.check(schedule)
        self.name = name
        self.schedule = schedule
        self.declared = {d.path: d for d in declared}

    def init(self, arrays: Arrays) -> dict[str, PyTree]:
        """Returns the state for parameters, split over devices as they are."""
        return {
            group: self._transform(group, _zeros()).init(members)
            for group, members in self._grouped(arrays).items()
        }

    def update(
        self,
        gradients: Arrays,
        state: dict[str, PyTree],
        arrays: Arrays,
        numbers: Numbers,
        step: Int[Array, ""],
    ) -> tuple[Arrays, dict[str, PyTree], dict[str, Float[Array, ""]]]:
        """Takes one step.

        Args:
          gradients: of the loss, by name.
          state: from ``init`` or the last update.
          arrays: the parameters, by name.
          numbers: rates, decays and the schedule's numbers.
          step: steps taken before; optax's own counters follow it.

        Returns:
          The parameters, the state, and ``grad_norm`` (before clipping) and ``learning_rate``.
        """
        norm = optax.global_norm({name: g.astype(jnp.float32) for name, g in gradients.items()})
        wanted = jnp.where(numbers.clip > 0, numbers.clip, jnp.inf)
        factor = jnp.minimum(1.0, wanted / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        gradients = {name: g * factor.astype(g.dtype) for name, g in gradients.items()}
        rate = schedules.multiplier(self.schedule, step, numbers.schedule)
        after: Arrays = {}
        grouped = self._grouped(arrays)
        new_state = {}
        for group, members in grouped.items():
            peak = numbers.muon_learning_rate if group == "muon" else numbers.learning_rate
            changed, new_state[group] = self._update_group(
                group,
                {name: gradients[name] for name in members},
                optax.tree.set(state[group], count=step.astype(jnp.int32)),
                members,
                numbers,
                rate * peak,
            )
            after.update(changed)
        after = {name: after[name] for name in arrays}
        return after, new_state, dict(grad_norm=norm, learning_rate=rate * numbers.learning_rate)

    def _grouped(self, arrays: Arrays) -> dict[str, Arrays]:
        if self.name != "muon":
            return {self.name: arrays}
        matrix = {name for name in arrays if self.declared[name].kind == "matrix"}
        groups = {
            "muon": {n: a for n, a in arrays.items() if n in matrix},
            "adamw": {n: a for n, a in arrays.items() if n not in matrix},
        }
        return {group: members for group, members in groups.items() if members}

    def _update_group(
        self,
        group: str,
        gradients: Arrays,
        state: PyTree,
        arrays: Arrays,
        numbers: Numbers,
        rate: Array,
    ) -> tuple[Arrays, PyTree]:
        def apply(
            gradients: Arrays, state: PyTree, arrays: Arrays, numbers: Numbers, rate: Array
        ) -> tuple[Arrays, PyTree]:
            updates, new = self._transform(group, numbers).update(gradients, state, arrays)
            # The numbers are float32 and would widen what is kept in the parameters' type.
            state = jax.tree.map(lambda after, before: after.astype(before.dtype), new, state)
            decay = rate * numbers.weight_decay
            after = {}
            for name, array in arrays.items():
                change = rate * updates[name]
                if self.declared[name].kind in DECAYED:
                    change = change + decay * array
                after[name] = (array - change).astype(array.dtype)
            return after, state

        arguments = (gradients, state, arrays, numbers, rate)
        if group in ("adamw", "lion") or jax.sharding.get_abstract_mesh().empty:
            return apply(*arguments)
        # These reshape and transpose across shards: the compiler places what is in between.
        places = jax.tree.map(lambda x: jax.typeof(x).sharding, (arrays, state))
        return jax.sharding.auto_axes(apply, out_sharding=places)(*arguments)

    def _transform(self, group: str, numbers: Numbers) -> optax.GradientTransformation:
        if group == "adamw":
            return optax.scale_by_adam(numbers.b1, numbers.b2, numbers.eps)
        if group == "lion":
            return optax.scale_by_lion(numbers.b1, numbers.b2)
        if group == "adafactor":
            return optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
        dimensions = {
            name: optax.contrib.MuonDimensionNumbers(d.rows, d.columns)
            for name, d in self.declared.items()
            if d.kind == "matrix"
        }
        return optax.chain(
            optax.contrib.scale_by_muon(
                beta=numbers.muon_momentum, weight_dimension_numbers=dimensions
            ),
            optax.stateless(self._widen),
        )

    def _widen(self, updates: Arrays, arrays: Any) -> Arrays:
        """Scales each orthogonal update by sqrt(max(1, columns / rows)), as optax's Muon does."""
        del arrays

        def size(d: Declaration, dims: tuple[int, ...]) -> int:
            return math.prod(d.shape[i] for i in dims)

        scaled = {}
        for name, update in updates.items():
            d = self.declared[name]
            scaled[name] = update * max(1.0, size(d, d.columns) / size(d, d.rows)) ** 0.5
        return scaled


def _zeros() -> Numbers:
    """Returns numbers for the start of a state, which depends on none of them."""
    zero = jnp.zeros((), jnp.float32)
    names = {f.name for f in dataclasses.fields(Numbers)} - {"schedule"}
    return Numbers(schedule=ScheduleNumbers(zero, zero, zero, zero), **dict.fromkeys(names, zero))
