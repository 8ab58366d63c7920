"""The update of a step: one optax chain from the declarations, every number an argument.

Parameters enter by name (``{"blocks.0.attention.query": array}``), so that an optimizer's
state reads alike in memory and on disk.
"""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from configs import base, objects
from configs.errors import UserError
from model.parameter import Declaration
from train import schedules
from train.numbers import Numbers
from train.transformations import Arrays, across_shards, apart, by_layer

DECAYED = ("matrix", "embedding", "unembedding")

Declarations = dict[str, Declaration]
Scaling = Callable[[Numbers, Declarations], optax.GradientTransformation]


class Optimizer:
    """The update of the parameters of one model."""

    def __init__(self, optim: ConfigDict, declared: list[Declaration]):
        """Takes what of ``config.optim`` is no number, and the declarations of the model.

        Raises:
          UserError: there is no such optimizer, or no parameter like a pattern.
        """
        self.schedule = optim.schedule
        self.master_weights, self.ema = optim.master_weights, optim.ema > 0
        self.declared = {d.path: d for d in declared}
        self.patterns = [pattern for pattern, *_ in optim.multipliers]
        for pattern in self.patterns:
            if not any(fnmatchcase(path, pattern) for path in self.declared):
                raise UserError(
                    f"optim.multipliers: no parameter is like {pattern!r}; they are "
                    f"{', '.join(self.declared)}."
                )
        # Which parameters each scaling takes, by the name of its state.
        self.groups: dict[str, tuple[Scaling, list[str]]] = {}
        if optim.name == "muon":
            matrices = [path for path, d in self.declared.items() if d.kind == "matrix"]
            others = [path for path in self.declared if path not in matrices]
            self.groups = {"muon": (_muon, matrices), "adamw": (SCALINGS["adamw"], others)}
        elif optim.name in SCALINGS:
            self.groups = {optim.name: (SCALINGS[optim.name], list(self.declared))}
        else:
            self.groups = {"custom": (_custom(optim.name), list(self.declared))}

    def init(self, arrays: Arrays) -> dict[str, PyTree]:
        """Returns the state for parameters, sharded over devices as they are."""
        return dict(self.chain(Numbers.of(base.get_config()), jnp.int32(0)).init(arrays))

    def chain(
        self, numbers: Numbers, step: Int[Array, ""]
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the whole update of a step, which turns gradients into terms of parameters.

        Args:
          numbers: rates, decays and the schedule's numbers; may be traced.
          step: steps taken before.
        """
        schedule = schedules.multiplier(self.schedule, step, numbers)
        matrices = self.groups["muon"][1] if "muon" in self.groups else ()

        def clip(gradients: Arrays, _: Arrays) -> Arrays:
            largest = jnp.where(numbers.clip > 0, numbers.clip, jnp.inf)
            norm = jnp.maximum(global_norm(gradients), jnp.finfo(jnp.float32).tiny)
            factor = jnp.minimum(1.0, largest / norm)
            return {name: g * factor.astype(g.dtype) for name, g in gradients.items()}

        def decay(updates: Arrays, arrays: Arrays) -> Arrays:
            def decayed(name: str) -> Array:
                factor = numbers.weight_decay * self._multiplier(name, 1, numbers)
                return updates[name] + factor * arrays[name]

            decaying = [name for name in updates if self.declared[name].kind in DECAYED]
            return updates | {name: decayed(name) for name in decaying}

        def descend(updates: Arrays, _: Arrays) -> Arrays:
            def rate(name: str) -> Array:
                peak = numbers.muon_learning_rate if name in matrices else numbers.learning_rate
                return schedule * peak * self._multiplier(name, 0, numbers)

            return {name: -rate(name) * update for name, update in updates.items()}

        return optax.named_chain(
            ("clip", optax.stateless(clip)),
            *(
                (group, across_shards(members, scaling, numbers, self.declared))
                for group, (scaling, members) in self.groups.items()
            ),
            ("decay", optax.stateless(decay)),
            ("rate", optax.stateless(descend)),
        )

    def _multiplier(self, name: str, column: int, numbers: Numbers) -> Array | float:
        """The product of a parameter's multipliers: column 0 for the rate, 1 for the decay."""
        matched = (i for i, pattern in enumerate(self.patterns) if fnmatchcase(name, pattern))
        return math.prod((numbers.multipliers[i, column] for i in matched), start=1.0)


def global_norm(gradients: Arrays) -> Float[Array, ""]:
    """Returns the norm of all gradients together, in float32."""
    return optax.global_norm({name: g.astype(jnp.float32) for name, g in gradients.items()})


def _adafactor(numbers: Numbers, declared: Declarations) -> optax.GradientTransformation:
    del numbers
    whole = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    layers = {name: 0 for name, d in declared.items() if "layers" in d.axes}
    return by_layer(layers, whole) if layers else whole


def _muon(numbers: Numbers, declared: Declarations) -> optax.GradientTransformation:
    """Jordan et al. 2024, "Muon"; each update widened by sqrt(max(1, columns / rows))."""
    matrices = {name: d for name, d in declared.items() if d.kind == "matrix"}
    dimensions = {
        name: optax.contrib.MuonDimensionNumbers(d.rows, d.columns) for name, d in matrices.items()
    }

    def widen(updates: Arrays, _: Arrays) -> Arrays:
        def size(d: Declaration, dims: tuple[int, ...]) -> int:
            return math.prod(d.shape[i] for i in dims)

        wider = {n: size(d, d.columns) / size(d, d.rows) for n, d in matrices.items()}
        return {name: update * max(1.0, wider[name]) ** 0.5 for name, update in updates.items()}

    return optax.chain(
        optax.contrib.scale_by_muon(
            beta=numbers.muon_momentum, weight_dimension_numbers=dimensions
        ),
        optax.stateless(widen),
    )


def _custom(name: str) -> Scaling:
    """Returns a function of the user's own, checked when it is called."""
    function = objects.load(name, "optim.name", NAMES, arguments=2)

    def scaling(numbers: Numbers, declared: Declarations) -> Any:
        layers = {name: d.layers() for name, d in declared.items()}
        transformation = function(numbers, {d.path: d for ds in layers.values() for d in ds})
        if not isinstance(transformation, optax.GradientTransformation):
            raise UserError(
                f"optim.name = {name!r} returned {type(transformation).__name__}; return an "
                "optax.GradientTransformation from function(numbers, declarations)."
            )
        stacks = {
            n: [d.path for d in ds] for n, ds in layers.items() if "layers" in declared[n].axes
        }
        return apart(stacks, transformation, f"optim.name = {name!r}")

    return scaling


SCALINGS: dict[str, Scaling] = {
    "adamw": lambda numbers, _: optax.scale_by_adam(numbers.b1, numbers.b2, numbers.eps),
    "lion": lambda numbers, _: optax.scale_by_lion(numbers.b1, numbers.b2),
    "adafactor": _adafactor,
    "muon": _muon,
}
NAMES = tuple(SCALINGS)
