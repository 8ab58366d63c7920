"""Goes on with runs, in any number of processes, after having saved elsewhere what it restored.

``python -m tests.train.processes.resaving --config=... --workdir=ONE,TWO --to=THIRD,FOURTH`` takes
steps from the newest saved one to the config's last, and writes their losses to ``losses.json``
beside what it saved.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import command, resolved
from configs.folders import Folder, folder
from model.axes import ShardingRules, make_mesh, split_host
from model.config import ModelConfig
from text.reading import open_sources
from train.batches import training_batches
from train.calls import calls
from train.checkpoints import Checkpoints
from train.numbers import Numbers
from train.processes import joining
from train.processes.group import Processes
from train.step import init_state, make_optimizer, make_step


def _define_flags() -> None:
    command.define_config()
    joining.define_flags()
    flags.DEFINE_list("workdir", None, "The folders of runs.")
    flags.DEFINE_list("to", None, "The folders to save what they hold in.")


def main() -> None:
    """Goes on with each."""
    config, given = command.config(), flags.FLAGS
    with joining.join() as processes:
        split_host(config.host_devices)
        for source, target in zip(given.workdir, given.to, strict=True):
            _go_on(config, folder(source, "workdir"), folder(target, "to"), processes)


def _go_on(config: ConfigDict, source: Folder, target: Folder, processes: Processes) -> None:
    sources = open_sources(config)
    config = resolved.resolve(config, sources.vocab_size)
    shape = ModelConfig.from_config(config.model, 1, config.length)
    mesh = make_mesh(config.mesh.to_dict())
    optimizer, rules = make_optimizer(config, shape), ShardingRules.of(config.mesh)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(
            lambda key: init_state(shape, optimizer, key, rules), jax.random.key(0)
        )
        checkpoints = Checkpoints(source, config, None, processes=processes)
        found = checkpoints.find()
        state = checkpoints.restore(found, abstract, mesh)
        with Checkpoints(target, config, None, processes=processes) as again:
            again.save(state, found.step)
        step, numbers = make_step(config, optimizer), Numbers.of(config)
        slots, losses = config.steps_per_call, []
        cut = calls(found.step, config.steps, slots)
        rest = (config.batch_size, cut, slots, mesh, ShardingRules(), config.data.prefetch)
        for call, batch in training_batches(sources.train, *rest):
            state, values = step(state, batch, jnp.int32(len(call)), numbers)
            losses += np.asarray(values["loss"])[: len(call)].tolist()
    if processes.first:
        (target / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    command.run(main, _define_flags)
