"""This project, as a contender."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bench import start
from bench.shapes import SHAPES, config
from model.axes import ShardingRules, make_mesh
from model.config import ModelConfig
from train.optimizer import Numbers
from train.step import (
    Batch,
    init_state,
    make_optimizer,
    make_step,
    named_arrays,
    with_arrays,
)


class Training:
    """Optimizer steps as ``train.loop`` takes them: several a call, over batches on the device."""

    def __init__(self, shape: str, precision: str):
        """Args: name of the shape, "float32" or "bfloat16"."""
        self.shape = SHAPES[shape]
        self.config = config(shape, precision)
        model_config = ModelConfig.from_config(
            self.config.model, self.shape.vocab, self.shape.length
        )
        optimizer = make_optimizer(self.config, model_config)
        self.mesh = make_mesh(self.config.mesh.to_dict())
        jax.set_mesh(self.mesh)
        state = jax.jit(lambda key: init_state(model_config, optimizer, key))(jax.random.key(0))
        arrays = start.head_parameters(
            self.shape, start.gpt2_parameters(self.shape), model_config.padded_vocab_size
        )
        placed = {
            name: jax.device_put(arrays[name], old.sharding)
            for name, old in named_arrays(state.model).items()
        }
        self.state = type(state)(state.step, with_arrays(state.model, placed), state.optimizer)
        self.numbers = Numbers.of(self.config)
        self.step = make_step(self.config, optimizer)
        self.batches = start.batches(self.shape)
        spec = ShardingRules().spec((None, "batch", "length")) or PartitionSpec()
        self.places = NamedSharding(self.mesh, spec)

    def run(self, steps: int) -> dict[str, float]:
        """Takes steps; returns the loss of the last in nats a token."""
        slots = self.config.steps_per_call
        values = None
        for first in range(0, steps, slots):
            count = min(slots, steps - first)
            made = list(itertools.islice(self.batches, count))
            made += made[-1:] * (slots - count)
            tokens, labels = (np.stack(arrays) for arrays in zip(*made, strict=True))
            counted = np.ones(tokens.shape, bool)
            batch = Batch(*jax.device_put((tokens, labels, counted), self.places))
            self.state, values = self.step(self.state, batch, jnp.int32(count), self.numbers)
            last = count - 1
        assert values is not None
        return dict(loss=float(values["loss"][last]))
