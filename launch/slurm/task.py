"""What a task of a SLURM job does: it trains, and hands on what SLURM asks of it.

SLURM sends each task SIGUSR2 before the time limit (``sbatch --signal``), and SIGTERM when it takes
the nodes for another job (``slurm.conf``, ``PreemptMode`` and ``GraceTime``) or somebody cancels.
Training is asked once, by SIGTERM: all its processes stop after the same step and save it. Then
submitit, in task 0, has SLURM queue the job again.

Source: the manual pages of ``sbatch``, ``srun``, ``scancel``, ``squeue`` and ``slurm.conf``.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import submitit

from launch.slurm.states import job_state
from launch.supervision import MISTAKE

# JAX's own choice for SLURM: a port that depends on the job, for two jobs may share a node.
PORTS = range(61440, 65536)


class Training:
    """The function that submitit calls in each task; it is written into a file of the job.

    That file therefore holds no value of the environment.
    """

    def __init__(
        self, arguments: Sequence[str], names: Sequence[str], folder: str, requeues: int
    ) -> None:
        """Makes the function.

        Args:
          arguments: of ``python -m train``.
          names: variables that have to be in the job's environment.
          folder: where it is run.
          requeues: how many times more the job may be queued again.
        """
        self._arguments, self._names = list(arguments), list(names)
        self._folder, self._requeues = folder, requeues
        self._asked: set[int] = set()
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Trains; returns 0 when the run is finished, else ends the task with training's status."""
        missing = [name for name in self._names if name not in os.environ]
        if missing:
            print(
                f"error: {missing[0]} of --env did not come with the job; have SLURM export the "
                "environment of who submits (SLURM_EXPORT_ENV and the like must not say NONE).",
                file=sys.stderr,
            )
            sys.exit(MISTAKE)
        place = submitit.JobEnvironment()
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._ask)
        status = self._train(place)
        if status == 0:
            return 0
        if place.global_rank == 0 and status != MISTAKE and self._is_to_go_on(place.job_id):
            if self._requeues:
                print(f"the job is queued again, {self._requeues} times at most", flush=True)
                assert callable(requeue)
                requeue(signal.SIGUSR2, None)  # ends this process
            print("the job is not queued again: --requeues are used up", file=sys.stderr)
        sys.exit(status)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """Returns what the job calls when it is started again: submitit asks for it."""
        if not self._requeues:
            return None
        following = Training(self._arguments, self._names, self._folder, self._requeues - 1)
        return submitit.helpers.DelayedSubmission(following)

    def _train(self, place: submitit.JobEnvironment) -> int:
        """Returns the exit status of training, 128 + the signal where one ended it."""
        words = [sys.executable, "-m", "train", *self._arguments]
        if place.num_tasks > 1:
            words.append(f"--coordinator_port={PORTS[int(place.job_id) % len(PORTS)]}")
        # SLURM may signal all processes of a task: training has SIGUSR2 blocked, as it is now.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}
            self._child = subprocess.Popen(words, cwd=self._folder, env=quiet | dict(os.environ))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if self._asked:  # meanwhile
            self._child.send_signal(signal.SIGTERM)
        code = self._child.wait()
        return code if code >= 0 else 128 - code

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Asks training to stop: once, for a second time would end it where it stands."""
        del frame
        first = not self._asked
        self._asked.add(number)
        if first and self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def _is_to_go_on(self, job_id: str) -> bool:
        """Tells whether SLURM asked, and neither cancels the job nor has queued it again itself."""
        if not self._asked:
            return False
        found = job_state(job_id)
        return found == "RUNNING" or (not found and signal.SIGUSR2 in self._asked)
