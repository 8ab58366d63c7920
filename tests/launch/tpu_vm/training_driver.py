"""The command with its own job, whose training is real; only its clock goes as its cloud's does.

``python -m tests.launch.tpu_vm.training_driver FOLDER watch --name=...``
"""

import functools
import sys
from pathlib import Path

from configs import command
from launch.tpu_vm import __main__ as tpu_vm
from tests.launch.tpu_vm.driver import Clock
from tests.launch.tpu_vm.fake_gcloud import Machine

if __name__ == "__main__":
    machine = Machine(Path(sys.argv.pop(1)))
    main = functools.partial(tpu_vm.main, clock=Clock(machine))
    command.run(main, tpu_vm.define_flags, verbs=tpu_vm.VERBS)
