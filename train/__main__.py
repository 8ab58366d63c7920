"""``python -m train --config=configs/toy.py --workdir=runs/toy``: trains a config in a folder.

The same command again goes on where the run stopped.
"""

from configs import keyboard
from train import heartbeat

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds
    heartbeat.begin()

import sys

from absl import flags

from configs import command
from configs.console import SteadyConsole
from configs.errors import UserError
from configs.folders import run_folder
from model.compiled import keep_compiled
from train.loop import train
from train.processes import joining


def _define_flags() -> None:
    command.define_config()
    joining.define_flags()
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")


def main() -> None:
    """Trains ``--config`` in ``--workdir``; exits with 128 + the signal that stopped it."""
    keep_compiled()
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing; name the run's folder, for example runs/toy.")
    config, workdir = command.config(), run_folder(flags.FLAGS.workdir, "--workdir")
    console = SteadyConsole()
    with joining.join() as processes:
        heartbeat.joined()
        outcome = train(config, workdir, console, processes)
        console.check()
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)


if __name__ == "__main__":
    command.run(main, _define_flags)
