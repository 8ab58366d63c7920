"""This project, as a contender; like its commands, it keeps what it compiles."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from bench import start
from bench.shapes import FEW, SHAPES, config
from bench.worker import peak_bytes
from configs import files
from model import masks
from model.axes import ShardingRules, make_mesh
from model.backends import choice
from model.compiled import keep_compiled
from model.compute import Compute
from model.config import ModelConfig
from model.decoding import ready
from model.heads import Heads
from model.manifest import STEPS
from model.parameter import named_arrays, with_arrays
from model.pattern import Pattern
from model.transformer import Transformer
from text.reading import open_sources
from train.batches import Batch, training_batches
from train.calls import calls
from train.checkpoints import Checkpoints
from train.decoding import continue_tokens
from train.numbers import Numbers
from train.sampler import Sampler
from train.step import (
    init_state,
    make_optimizer,
    make_step,
)


class Training:
    """Optimizer steps as ``train.loop`` takes them: several a call, over batches on the device."""

    def __init__(self, shape: str, precision: str):
        """Args: name of the shape, "float32" or "bfloat16"."""
        keep_compiled()
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
        model = with_arrays(state.model, placed)
        self.state = dataclasses.replace(state, model=model)
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


class Saving(Training):
    """Optimizer steps, with saves as ``train.loop`` begins them, in a folder that goes at the end.

    A run of it ends when its last save is whole.
    """

    def __init__(self, shape: str, every: int):
        """Args: name of the shape, steps between saves; 0 for none."""
        super().__init__(shape, "float32")
        self.every, self.taken = every, 0
        self._folder = tempfile.TemporaryDirectory()
        self.workdir = Path(self._folder.name)
        self.checkpoints = Checkpoints(self.workdir, self.config, None)

    def run(self, steps: int) -> dict[str, float]:
        """Takes steps; returns the saves, the seconds that the loop was in them, and their size."""
        saves, waited, found = 0, 0.0, {}
        for done in range(0, steps, self.every or steps):
            count = min(self.every or steps, steps - done)
            found = super().run(count)
            self.taken += count
            if self.every:
                began = time.perf_counter()
                self.checkpoints.save(self.state, self.taken)
                waited += time.perf_counter() - began
                saves += 1
        self.checkpoints.wait()
        newest = self.workdir / STEPS / str(self.taken)
        size = sum(files.sizes(newest).values()) if self.every else 0
        return found | dict(saves=saves, waited=waited, bytes=size)


class Attention:
    """What ``auto`` takes for a length: values, and gradients of queries, keys and values."""

    def __init__(self, length: int, precision: str, heads: int = 12, width: int = 64):
        """Args: tokens, "float32" or "bfloat16", heads, width of each."""
        keep_compiled()
        compute = Compute(precision, "float32", ShardingRules())
        shape = (1, heads, length, width)
        like: Any = jax.ShapeDtypeStruct(shape, precision)
        whole = masks.causal(length, None, compute)
        self.backend = choice.select("auto", Heads(like, like, like), whole, Pattern(), compute)
        attend = choice.BACKENDS[self.backend]

        @jax.jit
        def step(q: Array, k: Array, v: Array, given: Array) -> tuple[Array, ...]:
            mask = masks.causal(q.shape[2], None, compute)
            out, pull = jax.vjp(lambda *qkv: attend(Heads(*qkv), mask, Pattern(), compute), q, k, v)
            return out, *pull(given.astype(out.dtype))

        self.step: Callable[..., tuple[Array, ...]] = step

        def arrays(length: int) -> list[Array]:
            keys = jax.random.split(jax.random.key(0), 4)
            return [jax.random.normal(key, (1, heads, length, width), precision) for key in keys]

        jax.block_until_ready(self.step(*arrays(FEW)))
        self.libraries = peak_bytes()
        self.arrays = arrays(length)

    def run(self, times: int) -> dict[str, object]:
        """Attends, forward and backward; returns the backend, and what few tokens take."""
        for _ in range(times):
            jax.block_until_ready(self.step(*self.arrays))
        return dict(backend=self.backend, libraries_bytes=self.libraries)


class Decoding:
    """The likeliest new tokens after random prompts, by the loop that ``train.sample`` runs."""

    def __init__(self, shape: str, precision: str, batch: int, prompt: int, new: int):
        """Args: name of the shape, dtype, rows, tokens of each prompt, new tokens of each row."""
        keep_compiled()
        self.shape, self.new = SHAPES[shape], new
        model_config = ModelConfig.from_config(
            config(shape, precision).model, self.shape.vocab, self.shape.length
        )
        arrays = start.head_parameters(
            self.shape, start.gpt2_parameters(self.shape), model_config.padded_vocab_size
        )
        model = jax.eval_shape(lambda key: Transformer(model_config, key), jax.random.key(0))
        names = named_arrays(model)
        self.model = ready(with_arrays(model, {name: jnp.asarray(arrays[name]) for name in names}))
        self.prompts = list(start.prompts(self.shape, batch, prompt))

    def run(self, times: int) -> dict[str, object]:
        """Continues the prompts; returns the new tokens."""
        found = []
        for _ in range(times):
            found = continue_tokens(self.model, self.prompts, self.new, Sampler(temperature=0.0))
        return dict(drawn=[row.tolist() for row in found])


class Loading:
    """The rows of a shape, cut from the King James text by characters, on the device."""

    def __init__(self, shape: str):
        """Args: name of the shape."""
        self.shape = SHAPES[shape]
        self.config = config(shape, "float32")
        self.config.data.update(dict(source="kjv", tokenizer="char", rows="stream"))
        self.source = open_sources(self.config).train
        self.mesh = make_mesh(self.config.mesh.to_dict())

    def run(self, steps: int) -> dict[str, float]:
        """Makes the batches of some steps, as the loop reads them."""
        slots = self.config.steps_per_call
        found = training_batches(
            self.source,
            self.shape.batch,
            calls(0, steps, slots),
            slots,
            self.mesh,
            ShardingRules(),
            self.config.data.prefetch,
        )
        return dict(tokens=float(sum(batch.tokens.size for _, batch in found)))
