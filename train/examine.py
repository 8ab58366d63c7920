"""A step looked at closely: the gradient of each parameter, the loss of each token."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from model.parameter import Declaration, named_arrays
from model.transformer import Transformer
from train import loss
from train.batches import Batch
from train.numbers import Numbers
from train.step import TrainState, dropout_key, gradient, microbatches


@dataclasses.dataclass(frozen=True)
class ParameterGradient:
    """The gradient of a parameter, or of one layer of a stack."""

    name: str
    norm: float
    not_finite: int  # elements
    size: int  # elements in all


def examine(
    state: TrainState, batches: Batch, numbers: Numbers, config: ConfigDict, declared: Any
) -> tuple[list[ParameterGradient], Float[np.ndarray, "B T"]]:
    """Returns the gradients of a step by parameter and layer, and the loss of each token.

    Args:
      state: before the step; it stays as it is.
      batches: stacked, of which the first is the step's.
      numbers: of the config.
      config: whole.
      declared: the declarations of the model.
    """
    objective = loss.by_name(config.loss)
    accumulate, chunk = config.optim.accumulate, config.loss_chunk

    def run(model: Transformer, batches: Batch, step: Array) -> tuple[dict, Array]:
        batch = jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, 0, 0, False), batches)
        key = dropout_key(config, step)
        slopes, _ = gradient(model, batch, numbers.z_loss, key, accumulate, chunk, objective)
        arrays = named_arrays(slopes)
        of_each = {d.path: _measured(d, arrays[d.path], model) for d in declared}
        total = jnp.maximum(batch.counted.sum(), 1).astype(jnp.float32)

        def of_tokens(part: tuple[Batch, Array]) -> Array:
            batch, key = part
            weights = batch.counted / total
            return objective(model, batch, weights, numbers.z_loss, key, chunk)[1]

        if accumulate == 1:
            nats = of_tokens((batch, key))
        else:
            parts = microbatches(batch, accumulate), jax.random.split(key, accumulate)
            nats = jax.lax.map(of_tokens, parts)
        return of_each, model.compute.reshard(nats, (None,) * nats.ndim)

    of_each, nats = jax.device_get(jax.jit(run)(state.model, batches, state.step))
    if accumulate > 1:  # each microbatch has every so many-th row
        nats = np.moveaxis(nats, 0, 1).reshape(-1, nats.shape[-1])
    found = []
    for d in declared:
        for one, norm, bad in zip(d.layers(), *of_each[d.path], strict=True):
            found.append(ParameterGradient(one.path, float(norm), int(bad), one.size))
    return found, nats


def _measured(declared: Declaration, slope: Array, model: Transformer) -> tuple[Array, Array]:
    """Returns the norm and the count of what is not finite, of each layer or of the one."""
    slope = slope.astype(jnp.float32)
    if "layers" not in declared.axes:
        slope = slope[None]
    rest = tuple(range(1, slope.ndim))
    norm = jnp.sqrt(jnp.square(slope).sum(rest))
    bad = (~jnp.isfinite(slope)).sum(rest, dtype=jnp.float32)
    return model.compute.reshard(norm, (None,)), model.compute.reshard(bad, (None,))
