"""A run of several processes on this machine, as on several hosts; on CPUs they talk over gloo.

``python -m launch.local --processes=2 --config=configs/toy.py --workdir=runs/two``

All other flags are those of ``python -m train``; ``config.host_devices`` are those of one process.
``--restarts=3`` is for a run that nobody looks after: what crashed or hangs is started again.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import functools
import shlex
import signal
import sys

from absl import flags

from configs import command
from configs.folders import Folder, run_folder
from launch import job, supervision
from launch.group import Group, Share, Start
from launch.supervision import supervise
from model import manifest


def _define_flags() -> None:
    job.define_flags()
    flags.DEFINE_integer("processes", 1, "How many processes to start.", 1)
    supervision.define_flags()


def main() -> None:
    """Runs ``--processes`` processes of a run; exits with the status of the first that fails."""
    given = flags.FLAGS
    described = job.of_flags(job.Resources(processes=given.processes))
    share = Share(given.processes)
    start = Start(described.arguments(), described.environment)
    if given.dry_run:
        for index in share.indices():
            shown = [f"{name}={job.HIDDEN}" for name in sorted(start.environment)]
            print(" ".join([*shown, shlex.join(start.words(index, share.count, "localhost:PORT"))]))
        return
    workdir = run_folder(given.workdir, "--workdir") if given.workdir else None
    group = Group(share, start, supervision.stall(), workdir)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, group.forward)
    saved = functools.partial(_newest_step, workdir)
    sys.exit(supervise(group.run, supervision.restarts(), saved, group.asked))


def _newest_step(workdir: Folder | None) -> int:
    steps = manifest.whole_steps(workdir) if workdir else []
    return steps[-1] if steps else 0


if __name__ == "__main__":
    command.run(main, _define_flags)
