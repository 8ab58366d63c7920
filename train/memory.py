"""Refuses, before anything is allocated, a run that no memory of its devices can hold."""

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

    Args:
      config: whole and checked.
      model_config: the shape of its network.
      mesh: whose devices hold the run.

    Raises:
      UserError: they are larger; the sentence says how many bytes they take.
    """
    size = memory(mesh)
    if size is None:
        return
    needs = tally(model_config, config.length)
    if needs.parameter_bytes > size:
        raise UserError(
            f"the model's parameters take {needs.parameter_bytes:,} bytes and their gradients "
            f"{needs.gradient_bytes:,}, and there are {size:,}; lower model.embed_dim = "
            f"{model_config.embed_dim}, model.num_layers = {model_config.num_layers} or another "
            "of its sizes, or take more devices."
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


def memory(mesh: Mesh) -> int | None:
    """Returns the bytes that the devices of a mesh have together; None where they do not say."""
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if devices[0].platform == "cpu":  # all of them share the host's
        host = _host_memory()
        return None if host is None else host * jax.process_count()
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in devices]
    known = [limit for limit in limits if limit]
    return max(known) * mesh.size if known else None


def _host_memory() -> int | None:
    """Returns the bytes of memory and of what it may be swapped out to."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return sum(int(fields[n].split()[0]) for n in ("MemTotal", "SwapTotal")) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
