"""A job of SLURM: what is asked for, the file that sbatch is given, and its submission.

submitit writes the file: lines of ``#SBATCH``, and one ``srun`` that starts all tasks. Training's
arguments are in a file beside it that the tasks read, so that no shell sees them. The values of
``--env`` are in neither: sbatch takes them from the environment of who submits.
"""

import dataclasses
import io
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from configs.errors import UserError
from launch.job import Job
from launch.slurm.task import Training

# The fields that become lines of the file; one of them on two lines would be a line of a shell.
_WORD = re.compile(r"[A-Za-z0-9_.,:+@/-]+")
_CONSTRAINT = re.compile(r"[A-Za-z0-9_.,:+@=&|*()\[\]-]+")
_OF_SLURM = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What is asked of SLURM."""

    nodes: int
    tasks: int  # of each node; one is a process of the run
    minutes: int  # until SLURM ends the job
    notice: int = 300  # seconds before that at which training is asked to save and stop
    requeues: int = 10  # how many times the job may be queued again
    name: str = "manyheads"
    gpus: str = ""  # of each node: 8 or a100:8
    cpus: int = 0  # of each task; 0: SLURM's default
    memory: int = 0  # GiB of each node; 0: SLURM's default
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""

    def check(self) -> None:
        """Checks what the lines of the file hold.

        Raises:
          UserError: a field cannot be written there, or the time is too short.
        """
        for field in ("name", "partition", "account", "qos", "gpus", "constraint"):
            value, allowed = getattr(self, field), _CONSTRAINT if field == "constraint" else _WORD
            if value and not allowed.fullmatch(value):
                flag = "gpus_per_node" if field == "gpus" else field
                raise UserError(
                    f"--{flag}={value!r} holds what a line of sbatch cannot; take letters, digits "
                    "and the signs that SLURM's names have."
                )
        if self.gpus and not re.fullmatch(r"([\w.-]+:)?[1-9]\d{0,3}", self.gpus, re.ASCII):
            raise UserError(f"--gpus_per_node={self.gpus} is no count; write 8, or a100:8.")
        if self.notice >= self.minutes * 60:
            raise UserError(
                f"--notice={self.notice} seconds is all the time of --hours; give more hours, or "
                "less notice."
            )

    def parameters(self) -> dict[str, object]:
        """Returns them in submitit's words."""
        given = dict(
            nodes=self.nodes,
            ntasks_per_node=self.tasks,
            time=self.minutes,
            job_name=self.name,
            signal_delay_s=self.notice,
            gpus_per_node=self.gpus,
            cpus_per_task=self.cpus,
            mem=f"{self.memory}G" if self.memory else "",
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            constraint=self.constraint,
            additional_parameters={
                ("requeue" if self.requeues else "no-requeue"): True,
                "export": "ALL",
            },
            srun_args=[
                # One that fails gives the others the time to say why, and task 0 to save.
                "--kill-on-bad-exit=0",
                "--wait=0",
                # srun does not take it from sbatch since SLURM 22.05.
                *([f"--cpus-per-task={self.cpus}"] if self.cpus else []),
            ],
        )
        # submitit's own wckey would be refused where SLURM knows which ones there are.
        return {name: value for name, value in given.items() if value} | {"wckey": None}


def check_folder(folder: Path) -> None:
    """Checks that sbatch can write its logs into a folder.

    Raises:
      UserError: its name holds what sbatch reads as something else.
    """
    if re.search(r"""["'\\%`$!#\x00-\x1f\x7f]""", str(folder)):
        raise UserError(
            f"the folder {str(folder)!r} holds quotes, %, $, # or the like, which sbatch reads as "
            "something else; name another by --logs."
        )


def check_environment(environment: Mapping[str, str]) -> None:
    """Checks that ``--env`` leaves SLURM's own variables alone.

    Raises:
      UserError: it does not.
    """
    for name in environment:
        if name.startswith(_OF_SLURM):
            raise UserError(
                f"--env={name} is a variable of SLURM or submitit, which they set themselves; "
                "leave it out, and use the flags."
            )


class _Executor(submitit.SlurmExecutor):
    """submitit's, which can also write the file where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self) -> str:
        """Returns the file that sbatch is given."""
        return self._make_submission_file_text(self._submitit_command_str, "")


def executor(allocation: Allocation, folder: Path) -> _Executor:
    """Returns what writes and submits the job.

    Args:
      allocation: what is asked for.
      folder: for logs and submitit's files; all nodes have to see it.

    Raises:
      UserError: something cannot be written into sbatch's file.
    """
    allocation.check()
    check_folder(folder)
    made = _Executor(folder, max_num_timeout=allocation.requeues)
    made.update_parameters(**allocation.parameters())
    return made


def submit(job: Job, allocation: Allocation, folder: Path) -> str:
    """Submits a job; Ctrl-C and the like wait until its id is known.

    Args:
      job: what is run.
      allocation: what is asked for.
      folder: for logs and submitit's files.

    Returns:
      The job's id.

    Raises:
      UserError: there is no SLURM here, or it refuses the job.
    """
    made = executor(allocation, folder)
    check_environment(job.environment)
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not found; run this where SLURM is, or see the file with --dry_run."
        )
    training = Training(job.arguments(), sorted(job.environment), os.getcwd(), allocation.requeues)
    try:
        # submitit prints what sbatch says; the sentence below has it.
        with _uninterrupted(), _environment(job.environment), redirect_stderr(io.StringIO()):
            return made.submit(training).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        lines = str(error).strip().splitlines()
        reason = next((line for line in reversed(lines) if "sbatch: error: " in line), lines[-1])
        reason = reason.strip().removeprefix("sbatch: error: ").rstrip(".")
        raise UserError(f"SLURM refuses the job ({reason}); change the flag it names.") from error
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written ({error.strerror}); name another by --logs."
        ) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    asked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    held = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """Has sbatch see what the job is to have, and nothing of a job that it is submitted in."""
    before = dict(os.environ)
    for name in before:
        inside = name.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and name not in _OF_THE_CLUSTER
        if inside or name == "SBATCH_EXPORT":
            del os.environ[name]
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
