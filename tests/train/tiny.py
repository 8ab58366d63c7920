"""A tiny run for the tests of this room: its config, its first state, its compiled step."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import base
from configs.resolved import resolve
from model.axes import ShardingRules, make_mesh
from model.config import ModelConfig
from model.parameter import named_arrays
from text.reading import open_sources
from train.accidents import window
from train.batches import Batch, make_batch
from train.numbers import Numbers
from train.step import TrainState, init_state, make_optimizer, make_step

FIELDS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 16,
    "length": 8,
    "steps_per_call": 5,
    "model.embed_dim": 16,
    "model.num_layers": 2,
    "model.num_heads": 8,
    "model.head_dim": 4,
    "model.value_dim": 3,
    "model.mlp_dim": 24,
    "model.vocab_size": 65,  # no mesh divides it
    "data.source": "repeats",
    "data.periods": (2, 6),
    "data.rows": "stream",
    "optim.learning_rate": 0.01,
    "optim.warmup_steps": 3,
    "mesh.fsdp": 1,
    "checkpoint.every": 0,
    "log.every": 1,
    "log.eval_every": 0,
    "log.tensorboard": False,
}


def config(changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns a whole config; ``changes`` goes by dotted names."""
    found = base.get_config()
    found.update_from_flattened_dict({**FIELDS, **(changes or {})})
    return resolve(found, found.model.vocab_size) if found.model.vocab_size else found


def mesh(**sizes: int) -> Mesh:
    """Returns a mesh of as many of the eight devices as the sizes ask for."""
    whole = dict(data=1, fsdp=1, heads=1, context=1) | sizes
    return make_mesh(whole)


def model_config(config: ConfigDict) -> ModelConfig:
    """Returns the shape of its network."""
    return ModelConfig.from_config(config.model, 1, config.length)


class Stepper:
    """The step of a config on a mesh, compiled once for stacks of ``config.steps_per_call``."""

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.source = open_sources(config).train
        self.step = make_step(config, make_optimizer(config, model_config(config)))
        self._compiled: Any = None

    def start(self) -> TrainState:
        """Returns the state before the first step."""
        shape = model_config(self.config)
        optimizer = make_optimizer(self.config, shape)
        rules = ShardingRules.of(self.config.mesh)
        length = window(self.config)
        fresh = jax.jit(lambda key: init_state(shape, optimizer, key, rules, length))
        with jax.set_mesh(self.mesh):
            return fresh(jax.random.key(self.config.seed))

    def batches(self, start: int) -> Batch:
        """Returns the stacked batches of the steps from ``start`` on."""
        slots, size = self.config.steps_per_call, self.config.batch_size
        steps = start + np.arange(slots)[:, None]
        rows = steps * size + np.arange(size)
        return make_batch(self.source.training, rows, self.mesh, ShardingRules())

    def call(
        self,
        state: TrainState,
        count: int | None = None,
        numbers: Numbers | None = None,
        batches: Batch | None = None,
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Takes ``count`` steps in one call; ``state`` itself stays usable."""
        count = self.config.steps_per_call if count is None else count
        batches = self.batches(int(state.step)) if batches is None else batches
        with jax.set_mesh(self.mesh):
            state = jax.tree.map(jnp.copy, state)
            arguments = (state, batches, jnp.int32(count), numbers or Numbers.of(self.config))
            if self._compiled is None:
                self._compiled = self.step.lower(*arguments).compile()
            state, values = self._compiled(*arguments)
        return state, {name: np.asarray(value)[:count] for name, value in values.items()}

    def losses(self, state: TrainState, steps: int) -> tuple[TrainState, np.ndarray]:
        """Takes ``steps`` steps; returns the state after them and the loss of each."""
        found = []
        while len(found) < steps:
            count = min(self.config.steps_per_call, steps - len(found))
            state, values = self.call(state, count)
            found.extend(values["loss"])
        return state, np.array(found)


def arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Returns the arrays of a state on the host, by name."""
    groups = dict(model=named_arrays(state.model), master=state.master, ema=state.ema)
    found = {
        f"{group}.{n}": array for group, arrays in groups.items() for n, array in arrays.items()
    }
    for path, value in jax.tree_util.tree_leaves_with_path(state.optimizer):
        found["optimizer" + jax.tree_util.keystr(path)] = value

    def host(value: jax.Array) -> np.ndarray:
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(value) if is_key else value)

    return {name: host(value) for name, value in found.items()}


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Checks that both hold the same names with the same bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@functools.cache
def on_one_device() -> tuple[Stepper, TrainState]:
    """Returns the step of the plain config on a mesh of one device, and its first state."""
    stepper = Stepper(config(), mesh())
    return stepper, stepper.start()
