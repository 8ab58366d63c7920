"""Restores the newest step of a run and saves it again elsewhere, in any number of processes.

``python -m tests.train.processes.resaving --config=... --workdir=FROM --to=TO``
"""

import jax
from absl import flags

from configs import command, resolved
from configs.folders import folder
from model.axes import ShardingRules, make_mesh, split_host
from model.config import ModelConfig
from text.reading import open_sources
from train.checkpoints import Checkpoints
from train.processes import joining
from train.step import init_state, make_optimizer


def _define_flags() -> None:
    command.define_config()
    joining.define_flags()
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_string("to", None, "The folder to save in.")


def main() -> None:
    """Restores and saves."""
    config = command.config()
    source, target = (folder(flags.FLAGS[n].value, n) for n in ("workdir", "to"))
    with joining.join() as processes:
        split_host(config.host_devices)
        config = resolved.resolve(config, open_sources(config).vocab_size)
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


if __name__ == "__main__":
    command.run(main, _define_flags)
