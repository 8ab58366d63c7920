"""The activations that a step keeps between its forward and its backward pass."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.plan.step import abstract_rows
from model.config import ModelConfig
from model.transformer import Transformer
from text.rows import Rows
from train import loss
from train.step import TrainState


def activation_bytes(
    config: ConfigDict, shape: ModelConfig, state: TrainState, mesh: Mesh, documents: bool
) -> tuple[int, int]:
    """Returns the bytes of what one device keeps of a microbatch for the gradient, and its host.

    It is what JAX hands from one pass to the other, of the program before it is compiled: without
    the parameters. In the host are the block inputs of ``model.remat = "offload"``.

    Args:
      config: whole.
      shape: of its model.
      state: its shapes, sharded.
      mesh: that they are on.
      documents: whether a row has several.
    """
    sizes = config.batch_size // config.optim.accumulate, config.length

    def kept(model: Transformer, batch: Rows) -> object:
        weights = batch.counted.astype(jnp.float32)
        objective, chunk = loss.by_name(config.loss), config.loss_chunk
        key = jax.random.key(0) if config.model.dropout else None

        def minimised(model: Transformer) -> jax.Array:
            return objective(model, batch, weights, jnp.zeros(()), key, chunk)[0]

        return jax.vjp(minimised, model)[1]

    with jax.set_mesh(mesh):
        batch = abstract_rows(config, sizes, ("batch", "length"), mesh, documents)
        found = jax.tree.leaves(jax.eval_shape(kept, state.model, batch))
    parameters = Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state.model))
    on_host = (shape.num_layers // shape.period, *sizes, shape.embed_dim)
    on_device = in_host = 0
    for leaf in found:
        if parameters[leaf.shape, leaf.dtype] > 0:
            parameters[leaf.shape, leaf.dtype] -= 1
            continue
        of_shard = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        size = jnp.dtype(leaf.dtype).itemsize * math.prod(of_shard)
        if config.model.remat == "offload" and leaf.shape == on_host:
            in_host += size
        else:
            on_device += size
    return on_device, in_host
