"""A run as a job of SLURM, through submitit (the extra ``slurm``).

    python -m launch.slurm --nodes=2 --gpus_per_node=8 --partition=gpu --hours=24
      --config=configs/gpt3.py:125m --workdir=/shared/125m

submits ``python -m train`` with the same flags: ``--processes`` tasks on each of ``--nodes``, which
find each other by what SLURM tells them. Workdir and ``--logs`` have to be seen by all nodes.
Before the time limit, and when the nodes are taken for another job, all processes stop after the
same step and save; the job is queued again, ``--requeues`` times at most, and goes on from there.
What a user has done wrong (exit status 2), and a crash, is not repeated.

``--wait`` shows what the job says and ends with its exit status; Ctrl-C leaves the job running, and
``--attach=JOB`` looks at it again.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import importlib.util
import math
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

from absl import flags

from configs import command
from configs.errors import UserError
from configs.folders import folder
from launch import job

INTERRUPTED = 128 + signal.SIGINT


def _define_flags() -> None:
    job.define_flags()
    flags.DEFINE_integer("nodes", 1, "How many nodes.", 1)
    flags.DEFINE_integer("processes", 1, "How many processes of the run on each node.", 1)
    flags.DEFINE_string("gpus_per_node", "", "GPUs of each node: 8, or a100:8.")
    flags.DEFINE_integer("cpus_per_task", 0, "CPUs of each process; by default SLURM's choice.", 0)
    flags.DEFINE_integer("mem_gb", 0, "GiB of each node; by default SLURM's choice.", 0)
    for name in ("partition", "account", "qos", "constraint"):
        flags.DEFINE_string(name, "", f"As sbatch has --{name}.")
    flags.DEFINE_string("name", "manyheads", "The job's name.")
    flags.DEFINE_float("hours", 1.0, "Time limit of each start.", 1 / 60)
    flags.DEFINE_integer("notice", 300, "Seconds before the limit at which the run is saved.", 1)
    flags.DEFINE_integer("requeues", 10, "How many times the job is queued again after that.", 0)
    flags.DEFINE_string("logs", "", "Folder of the job's files; by default slurm/ in the workdir.")
    flags.DEFINE_bool("wait", False, "Show what the job says until it has ended.")
    flags.DEFINE_string("attach", "", "A job that was submitted before: wait for that one.")
    flags.DEFINE_float("poll", 30.0, "Seconds between two questions to SLURM, with --wait.", 0.1)


def main() -> None:
    """Submits a job, or waits for one.

    Raises:
      UserError: a flag is ill-formed, submitit or SLURM is missing, or SLURM refuses the job.
    """
    given = flags.FLAGS
    if given.attach:
        if not re.fullmatch("[0-9]{1,18}", given.attach):
            raise UserError(f"--attach={given.attach} is no job's id; see squeue --me.")
        if given.dry_run:
            print(f"squeue and sacct on job {given.attach}, and what is in {_logs()}")
            return
        _wait(given.attach, _logs())
    # submitit reads them when it is imported.
    for name in [name for name in os.environ if name.startswith("SUBMITIT_")]:
        del os.environ[name]
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "submitit is not installed; run: pip install -c requirements.lock -e '.[slurm]'"
        )
    from launch.slurm import submission

    described = job.of_flags(job.Resources(hosts=given.nodes, processes=given.processes))
    if not described.workdir:
        raise UserError("--workdir is missing; name the run's folder, which all nodes see.")
    allocation = submission.Allocation(
        nodes=given.nodes,
        tasks=given.processes,
        minutes=math.ceil(given.hours * 60),
        notice=given.notice,
        requeues=given.requeues,
        name=given.name,
        gpus=given.gpus_per_node,
        cpus=given.cpus_per_task,
        memory=given.mem_gb,
        partition=given.partition,
        account=given.account,
        qos=given.qos,
        constraint=given.constraint,
    )
    logs = _logs()
    if given.dry_run:
        submission.check_environment(described.environment)
        print(submission.executor(allocation, logs).text())
        print(f"each task runs: {described.line()}")
        return
    job_id = submission.submit(described, allocation, logs)
    print(f"job {job_id} is submitted: {described.resources.total} processes")
    print(f"  see     squeue --jobs={job_id}")
    print(f"  watch   {_attach(job_id)}")
    print(f"  cancel  scancel {job_id}")
    print(f"  logs    {logs}/{job_id}_0_log.out", flush=True)
    if given.wait:
        _wait(job_id, logs)


def _logs() -> Path:
    given = flags.FLAGS
    if given.logs:
        return folder(given.logs, "--logs")
    workdir = (given.workdir or "").removeprefix("file://")
    if not workdir or "://" in workdir:
        raise UserError("--logs is missing; name a folder that all nodes see, for the job's files.")
    return folder(workdir, "--workdir") / "slurm"


def _attach(job_id: str) -> str:
    words = [f"--attach={job_id}", f"--logs={_logs()}"]
    return shlex.join(["python", "-m", "launch.slurm", *words])


def _wait(job_id: str, logs: Path) -> NoReturn:
    from launch.slurm import watching

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(watching.follow(job_id, logs, flags.FLAGS.poll))
    except KeyboardInterrupt:
        print(
            f"job {job_id} goes on; watch it again with: {_attach(job_id)}; or cancel it with: "
            f"scancel {job_id}",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    command.run(main, _define_flags)
