"""The sharded training step: gradients over microbatches, update, several steps in a call."""

import dataclasses
from collections.abc import Callable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from model.axes import ShardingRules
from model.config import ModelConfig
from model.parameter import declarations, parameters
from model.transformer import Transformer
from train.batches import Batch
from train.loss import summed_loss
from train.optimizer import Numbers, Optimizer


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: Int[Array, ""]
    model: Transformer
    optimizer: dict[str, Any]


Metrics = dict[str, Float[Array, "*steps"]]
Step = Callable[[TrainState, Batch, Array, Numbers], tuple[TrainState, Metrics]]


def make_optimizer(config: ConfigDict, model_config: ModelConfig) -> Optimizer:
    """Returns the optimizer of a config, for its model's declarations."""
    abstract = jax.eval_shape(lambda key: Transformer(model_config, key), jax.random.key(0))
    return Optimizer(config.optim.name, config.optim.schedule, declarations(abstract))


def init_state(
    model_config: ModelConfig,
    optimizer: Optimizer,
    key: PRNGKeyArray,
    rules: ShardingRules | None = None,
) -> TrainState:
    """Returns the state before the first step; run it under ``jax.jit`` with the mesh set."""
    model = Transformer(model_config, key, rules)
    state = optimizer.init(named_arrays(model))
    return TrainState(jnp.zeros((), jnp.int32), model, state)


def make_step(config: ConfigDict, optimizer: Optimizer) -> Step:
    """Returns the compiled training step.

    ``step(state, batches, count, numbers)`` takes ``count`` steps over the first ``count`` of the
    stacked batches and returns the new state and metrics with one entry a batch: ``loss``
    (nats a token), ``grad_norm`` and ``learning_rate``. The state's buffers are given away.
    The count is a number, not a shape: however a run is cut into calls, the same program runs.
    """
    accumulate = config.optim.accumulate
    key = jax.random.key(config.seed + 1)

    def one(state: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, Metrics]:
        dropout = jax.random.fold_in(key, state.step)
        gradients, loss = gradient(
            state.model, batch, numbers.z_loss, dropout, accumulate, config.loss_chunk
        )
        arrays, opt, metrics = optimizer.update(
            named_arrays(gradients), state.optimizer, named_arrays(state.model), numbers, state.step
        )
        model = with_arrays(state.model, arrays)
        return TrainState(state.step + 1, model, opt), dict(loss=loss, **metrics)

    def many(
        state: TrainState, batches: Batch, count: Int[Array, ""], numbers: Numbers
    ) -> tuple[TrainState, Metrics]:
        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            batch = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, False), batches
            )
            state, new = one(state, batch, numbers)
            return state, {name: metrics[name].at[i].set(new[name]) for name in metrics}

        slots = batches.tokens.shape[0]
        empty = {
            n: jnp.zeros((slots,), jnp.float32) for n in ("loss", "grad_norm", "learning_rate")
        }
        return jax.lax.fori_loop(0, count, body, (state, empty))

    return jax.jit(many, donate_argnums=0)


def gradient(
    model: Transformer,
    batch: Batch,
    z_loss: Float[Array, ""],
    key: PRNGKeyArray,
    accumulate: int = 1,
    chunk: int | None = None,
) -> tuple[Transformer, Float[Array, ""]]:
    """Returns the gradient of the mean loss over counted tokens, and the mean cross-entropy.

    Args:
      model: its parameters are differentiated.
      batch: of one step.
      z_loss: weight of the z-loss.
      key: of dropout.
      accumulate: microbatches; each takes every ``accumulate``-th row, so that every device
        works on each, and their sums are those of the whole batch.
      chunk: tokens whose logits a device holds at once; None: see ``train.loss``.
    """
    total = jnp.maximum(batch.counted.sum(), 1).astype(jnp.float32)

    def loss(model: Transformer, batch: Batch, key: Array) -> tuple[Array, Array]:
        x = model.last_residual(batch.tokens, batch.positions, batch.segments, key)
        weights = batch.counted / total
        with_z, nats = summed_loss(model, x, batch.labels, weights, z_loss, chunk)
        return with_z, (weights * nats).sum()

    differentiate = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        gradients, nats = differentiate(model, batch, key)
        return gradients, nats

    def cut(leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0] // accumulate, accumulate, *leaf.shape[1:])
        return jnp.moveaxis(rows, 1, 0)

    micro = jax.tree.map(cut, batch)

    def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
        gradients, nats = differentiate(model, *part)
        return jax.tree.map(jnp.add, carry, (gradients, nats)), None

    # Sums of many small parts are kept in float32, whatever the parameters are.
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), (model, jnp.zeros(())))
    (gradients, nats), _ = jax.lax.scan(add, zeros, (micro, jax.random.split(key, accumulate)))
    return jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, model), nats


@jax.jit
def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Tells whether all parameters, and all that the optimizer keeps, are finite numbers."""
    leaves = jax.tree.leaves((state.model, state.optimizer))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def named_arrays(model: Transformer) -> dict[str, Any]:
    """Returns the parameters, or their shapes, by name: {"blocks.0.attention.query": array}."""
    return dict(zip((name for name, _ in parameters(model)), jax.tree.leaves(model), strict=True))


def with_arrays(model: Transformer, arrays: dict[str, Array]) -> Transformer:
    """Returns the model with other parameters, by name."""
    names = [name for name, _ in parameters(model)]
    return jax.tree.unflatten(jax.tree.structure(model), [arrays[name] for name in names])
