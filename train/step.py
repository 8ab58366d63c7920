"""The sharded training step: gradients over microbatches, update, several steps in a call."""

import dataclasses
from collections.abc import Callable
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from model.axes import ShardingRules
from model.config import ModelConfig
from model.parameter import declarations, named_arrays, with_arrays
from model.transformer import Transformer
from train import accidents, loss
from train.batches import Batch
from train.numbers import Numbers
from train.optimizer import Optimizer, global_norm
from train.schedules import multiplier


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: Int[Array, ""]  # steps taken
    model: Transformer
    optimizer: dict[str, Any]  # what each part of the update keeps, by the part's name
    master: dict[str, Array]  # float32 weights behind narrower parameters, by name; may be empty
    ema: dict[str, Array]  # moving average of the parameters, in float32, by name; may be empty
    # The losses and gradient norms of the last good steps, by which spikes are known; may be empty.
    recent: dict[str, Array] = dataclasses.field(default_factory=dict)


METRICS = ("loss", "grad_norm", "learning_rate")
Metrics = dict[str, Float[Array, "*steps"]]
Step = Callable[[TrainState, Batch, Array, Numbers], tuple[TrainState, Metrics]]


def make_optimizer(config: ConfigDict, model_config: ModelConfig) -> Optimizer:
    """Returns the optimizer of a config, for its model's declarations."""
    abstract = jax.eval_shape(lambda: Transformer(model_config, jax.random.key(0)))
    return Optimizer(config.optim, declarations(abstract))


def init_state(
    model_config: ModelConfig,
    optimizer: Optimizer,
    key: PRNGKeyArray,
    rules: ShardingRules | None = None,
    window: int = 0,
) -> TrainState:
    """Returns the state before the first step; run it under ``jax.jit`` with the mesh set."""
    return state_of(optimizer, Transformer(model_config, key, rules), window)


def state_of(optimizer: Optimizer, model: Transformer, window: int = 0) -> TrainState:
    """Returns the state before the first step of a run that begins with a model.

    Args:
      optimizer: whose state it has.
      model: that is trained.
      window: steps that it remembers, see ``train.accidents.window``.
    """
    arrays = named_arrays(model)
    wide = {name: array.astype(jnp.float32) for name, array in arrays.items()}
    narrow = [name for name, array in arrays.items() if array.dtype != jnp.float32]
    master = {name: wide[name] for name in narrow if optimizer.master_weights}
    # A copy each: the step gives the buffers of its state away.
    ema = jax.tree.map(jnp.copy, wide) if optimizer.ema else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        model=model,
        optimizer=optimizer.init(arrays | master),
        master=master,
        ema=ema,
        recent=accidents.fresh(window),
    )


def make_step(config: ConfigDict, optimizer: Optimizer) -> Step:
    """Returns the compiled training step.

    ``step(state, batches, count, numbers)`` takes ``count`` steps over the first ``count`` of the
    stacked batches and returns the new state and metrics with one entry a batch: ``loss``
    (nats a token), ``grad_norm``, ``learning_rate`` and what ``train.accidents.figures`` names.
    The state's buffers are given away.
    The count is a number, not a shape: however a run is cut into calls, the same program runs.
    """

    def many(
        state: TrainState, batches: Batch, count: Int[Array, ""], numbers: Numbers
    ) -> tuple[TrainState, Metrics]:
        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            batch = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, False), batches
            )
            state, new = train_step(state, batch, numbers, optimizer, config)
            return state, {name: metrics[name].at[i].set(new[name]) for name in metrics}

        names = METRICS + accidents.figures(config)
        empty = {name: jnp.zeros(batches.tokens.shape[0], jnp.float32) for name in names}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    return jax.jit(many, donate_argnums=0)


def train_step(
    state: TrainState, batch: Batch, numbers: Numbers, optimizer: Optimizer, config: ConfigDict
) -> tuple[TrainState, Metrics]:
    """Takes one step: gradient, update, metrics; with ``accidents.policy`` "skip" not a bad one.

    Args:
      state: before it.
      batch: of this step.
      numbers: may be traced; whatever they are, the same program runs.
      optimizer: whose chain makes the update.
      config: whole; its seed, losses and ``optim.accumulate`` are part of the program.

    Returns:
      The state, and ``loss`` (nats a token), ``grad_norm`` (before clipping), ``learning_rate``,
      and the figures of accidents where they are watched.
    """
    dropout = dropout_key(config, state.step)
    slopes, nats = gradient(
        state.model,
        batch,
        numbers.z_loss,
        dropout,
        config.optim.accumulate,
        config.loss_chunk,
        loss.by_name(config.loss),
    )
    gradients, weights = named_arrays(slopes), named_arrays(state.model)

    update = optimizer.chain(numbers, state.step).update
    wide = weights | state.master
    updates, optimizer_state = update(gradients, state.optimizer, wide)
    wide = optax.apply_updates(wide, updates)

    # As TensorFlow's ExponentialMovingAverage with num_updates: the first steps fade soon.
    decay = jnp.minimum(numbers.ema, (1 + state.step) / (10 + state.step))
    after = TrainState(
        step=state.step + 1,
        model=with_arrays(state.model, {n: wide[n].astype(w.dtype) for n, w in weights.items()}),
        optimizer=dict(optimizer_state),
        master={name: wide[name] for name in state.master},
        ema={n: e + (1 - decay) * (wide[n] - e) for n, e in state.ema.items()},
        recent=state.recent,
    )
    schedule = multiplier(optimizer.schedule, state.step, numbers)
    rate = numbers.learning_rate * schedule
    metrics = dict(loss=nats, grad_norm=global_norm(gradients), learning_rate=rate)
    if not accidents.watched(config):
        return after, metrics
    recent, found = accidents.judge(
        state.recent, nats, metrics["grad_norm"], all_finite(after), numbers
    )
    if config.accidents.policy == "skip":
        before = dataclasses.replace(state, step=after.step)
        after = accidents.unless(found[accidents.CODE] > 0, before, after)
    return dataclasses.replace(after, recent=recent), metrics | found


def dropout_key(config: ConfigDict, step: Int[Array, ""]) -> PRNGKeyArray:
    """Returns the key of a step's dropout, after so many steps."""
    return jax.random.fold_in(jax.random.key(config.seed + 1), step)


def gradient(
    model: Transformer,
    batch: Batch,
    z_loss: Float[Array, ""],
    key: PRNGKeyArray,
    accumulate: int = 1,
    chunk: int | None = None,
    objective: loss.Loss = loss.cross_entropy,
) -> tuple[Transformer, Float[Array, ""]]:
    """Returns the gradient of the mean loss over counted tokens, and the mean cross-entropy.

    Summed over microbatches the gradient is float32, else it has the dtypes of the parameters.

    Args:
      model: its parameters are differentiated.
      batch: of one step.
      z_loss: weight of the z-loss.
      key: of dropout.
      accumulate: microbatches; each takes every ``accumulate``-th row, so that every device
        works on each, and their sums are those of the whole batch.
      chunk: tokens whose logits a device holds at once; None: see ``train.loss``.
      objective: what is minimised.
    """
    total = jnp.maximum(batch.counted.sum(), 1).astype(jnp.float32)

    def minimised(model: Transformer, batch: Batch, key: Array) -> tuple[Array, Array]:
        weights = batch.counted / total
        value, nats = objective(model, batch, weights, z_loss, key, chunk)
        return value, (weights * nats).sum()

    differentiate = jax.grad(minimised, has_aux=True)
    if accumulate == 1:
        return differentiate(model, batch, key)

    micro = microbatches(batch, accumulate)

    def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
        gradients, nats = differentiate(model, *part)
        return jax.tree.map(jnp.add, carry, (gradients, nats)), None

    # Sums of many small parts are kept in float32, whatever the parameters are.
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), (model, jnp.zeros(())))
    (gradients, nats), _ = jax.lax.scan(add, zeros, (micro, jax.random.split(key, accumulate)))
    return gradients, nats


def microbatches(batch: Batch, count: int) -> Batch:
    """Returns a batch cut into so many, stacked: each has every ``count``-th row."""

    def cut(leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
        return jnp.moveaxis(rows, 1, 0)

    return jax.tree.map(cut, batch)


@jax.jit
def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Tells whether all parameters, their average, and all that the optimizer keeps are finite."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
