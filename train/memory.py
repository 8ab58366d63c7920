"""Refuses, before anything is allocated, a run that no memory of its devices can hold."""

import math
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.errors import UserError
from model.config import ModelConfig
from model.tally import tally

# Of each token in a batch: the token, its label, and whether it counts.
TOKEN_BYTES = 4 + 4 + 1


def check_memory(config: ConfigDict, model_config: ModelConfig, mesh: Mesh) -> None:
    """Checks that neither the parameters nor the batches of a call are larger than all memory.

    Much that passes does not fit: of the activations one residual stream is counted, of the
    optimizer nothing.

    Raises:
      UserError: they are larger; the sentence says how many bytes they take.
    """
    size = memory(mesh)
    parameters = tally(model_config, config.length).parameter_bytes
    if parameters > size:
        raise UserError(
            f"the model's parameters take {parameters:,} bytes, and there are {size:,}; lower "
            f"model.embed_dim = {model_config.embed_dim}, model.num_layers = "
            f"{model_config.num_layers} or another of its sizes, or take more devices."
        )
    slots = min(config.steps_per_call, config.steps)
    tokens = config.batch_size * config.length
    batches = slots * tokens * TOKEN_BYTES
    width = model_config.embed_dim * jnp.dtype(model_config.dtype).itemsize
    residual = tokens // config.optim.accumulate * width
    if batches + residual > size:
        raise UserError(
            f"batch_size = {config.batch_size} sequences of length = {config.length} take "
            f"{batches:,} bytes as tokens (for {slots} steps in a call) and {residual:,} as one "
            f"microbatch's residual stream, and there are {size:,}; lower one of them, or take "
            "more devices."
        )


def memory(mesh: Mesh) -> int | float:
    """Returns the bytes that the devices of a mesh have together; infinity where they do not say.

    The devices of a CPU share its host's, of which what it may swap out to is not counted.
    """
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * jax.process_count()
    limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in devices]
    return max(limits) * mesh.size or math.inf
