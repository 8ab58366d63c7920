"""The training step of a config, compiled for devices that may not be here."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from model.axes import Axes, ShardingRules
from model.config import ModelConfig
from text.rows import Rows
from train.accidents import window
from train.numbers import Numbers
from train.optimizer import Optimizer
from train.step import TrainState, init_state, make_step


def abstract_state(
    config: ConfigDict, model_config: ModelConfig, optimizer: Optimizer, mesh: Mesh
) -> TrainState:
    """Returns the shapes of a run's state, each sharded over a mesh as the run has it."""
    rules = ShardingRules.of(config.mesh)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(
            lambda: init_state(model_config, optimizer, jax.random.key(0), rules, window(config))
        )
    return jax.tree.map(lambda leaf: _placed(leaf, mesh), state)


def compiled_step(
    config: ConfigDict, optimizer: Optimizer, state: TrainState, mesh: Mesh, documents: bool
) -> Any:
    """Returns ``train.step.make_step`` compiled for a mesh.

    Args:
      config: whole.
      optimizer: of it.
      state: as of ``abstract_state``.
      mesh: of devices that need not be here.
      documents: whether a row has several.

    Raises:
      jax.errors.JaxRuntimeError: it does not fit the devices' memory, say.
    """
    shape = min(config.steps_per_call, config.steps), config.batch_size, config.length
    with jax.set_mesh(mesh):
        batches = abstract_rows(config, shape, (None, "batch", "length"), mesh, documents)
        numbers = jax.eval_shape(lambda: Numbers.of(config))
        count = jax.ShapeDtypeStruct((), jnp.int32)
        step: Any = make_step(config, optimizer)
        return step.lower(state, batches, count, numbers).compile()


def abstract_rows(
    config: ConfigDict, shape: tuple[int, ...], axes: Axes, mesh: Mesh, documents: bool
) -> Rows:
    """Returns the shapes of rows of tokens with these logical axes, sharded over a mesh."""
    with jax.set_mesh(mesh):
        spec = ShardingRules.of(config.mesh).spec(axes, shape)

    def rows(dtype: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec or PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    of_documents = rows(jnp.int32) if documents else None
    tokens = rows(jnp.int32)
    return Rows(tokens, tokens, rows(jnp.bool_), of_documents, of_documents)


def shard_bytes(tree: PyTree) -> int:
    """Returns the bytes that one device holds of sharded arrays or shapes."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def _placed(leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns a shape on the mesh itself; what has no sharding is replicated."""
    sharded = leaf.sharding is not None and not leaf.sharding.mesh.empty
    spec = leaf.sharding.spec if sharded else PartitionSpec()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
