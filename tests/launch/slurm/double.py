"""SLURM in the place of SLURM: the commands that are used, on this machine, really running jobs.

It is one script, called as ``sbatch``, ``srun``, ``scancel``, ``scontrol``, ``squeue``, ``sacct``;
``$CLUSTER_DOUBLE`` is the folder of its state. What it does is what the manual pages say
(https://slurm.schedmd.com/man_index.html), as far as it is used here:

- sbatch: options are read from lines of ``#SBATCH`` before the first command, with quotes as a
  shell has them; ``--export=ALL`` passes on the environment; ``%j`` in names of files; the answer
  is "Submitted batch job ID". ``--no-requeue`` makes a job that cannot be queued again.
- srun: starts all tasks of the step with SLURM_PROCID, SLURM_LOCALID and the like, writes ``%t``
  as the number of the task, returns the highest exit status.
- scancel --signal: to the tasks of all steps, not to the batch script. Without: SIGCONT and SIGTERM
  to all, SIGKILL after KillWait, and the state is CANCELLED.
- scontrol requeue: the same signals, then the job is started again with SLURM_RESTART_COUNT, and
  its logs are appended to (``--open-mode=append``).
- squeue: the state of a job that has not ended, else "Invalid job id specified".
- sacct: state and exit status ("2:0", and "0:15" by a signal) of every job.

What it does not have: queues, other users, limits of time (a test sends the signal that SLURM sends
before one, which ``--signal`` of the job's file names).
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("CLUSTER_DOUBLE", "no folder of a state"))
KILL_WAIT = 30.0  # seconds, of slurm.conf


def read(job):
    """Returns the record of a job."""
    while True:
        try:
            return json.loads((STATE / job / "record").read_text())
        except json.JSONDecodeError:
            time.sleep(0.01)


def write(job, **changed):
    """Changes the record of a job."""
    path = STATE / job / "record"
    record = (read(job) if path.exists() else {}) | changed
    beside = path.with_name(f"record.{os.getpid()}")
    beside.write_text(json.dumps(record))
    beside.rename(path)


def pids(job):
    """Returns the tasks of a job's steps."""
    return [int(path.name) for path in (STATE / job).glob("tasks/*")]


def send(job, number):
    """Sends a signal to the tasks of a job."""
    for pid in pids(job):
        with contextlib.suppress(OSError):
            # SIGUSR2 to what a task has started too, as with some plugins (ProctrackType).
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children if number == signal.SIGUSR2 else ():
                os.kill(int(child), number)
            os.kill(pid, number)


def terminate(job):
    """Ends the tasks of a job as slurmd does."""
    send(job, signal.SIGCONT)
    send(job, signal.SIGTERM)
    until = time.monotonic() + KILL_WAIT
    while pids(job) and time.monotonic() < until:
        time.sleep(0.05)
    send(job, signal.SIGKILL)


def sbatch(words):
    """Takes a job, and starts it."""
    (script,) = words
    text, options = Path(script).read_text(), {}
    assert text.startswith("#!")
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH "), comments=True):
                name, _, value = word.removeprefix("--").partition("=")
                options[name] = value
        elif line and not line.startswith("#"):
            break
    if options.get("partition") == "none":
        print(
            "sbatch: error: invalid partition specified: none\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
            file=sys.stderr,
        )
        return 1
    assert os.environ.get("SBATCH_EXPORT", "ALL") == "ALL"
    assert "SLURM_JOB_ID" not in os.environ
    job = str(1000 + len(list(STATE.iterdir())))
    (STATE / job / "tasks").mkdir(parents=True)
    (STATE / job / "script").write_text(text)
    write(job, state="PENDING", code="0:0", options=options, restarts=0, folder=os.getcwd())
    controller = [sys.executable, __file__, "controller", job]
    subprocess.Popen(
        controller, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    print(f"Submitted batch job {job}")
    return 0


def controller(words):
    """Runs a job until it ends and is not queued again."""
    (job,) = words
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as slurmd, which sbatch is not
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    options = read(job)["options"]
    nodes, each = int(options["nodes"]), int(options.get("ntasks-per-node", 1))
    ours = dict(
        SLURM_JOB_ID=job,
        SLURM_JOB_NUM_NODES=str(nodes),
        SLURM_NTASKS=str(nodes * each),
        SLURM_NTASKS_PER_NODE=str(each),
        SLURM_JOB_NODELIST="localhost",
    )
    while True:
        restarts = read(job)["restarts"]
        again = dict(SLURM_RESTART_COUNT=str(restarts)) if restarts else {}
        write(job, state="RUNNING", requeued=False)
        with Path(options["output"].replace("%j", job)).open("ab") as out:
            done = subprocess.run(
                ["bash", str(STATE / job / "script")],
                env=dict(os.environ) | ours | again,
                cwd=read(job)["folder"],
                stdout=out,
                stderr=out,
                check=False,
            )
        record = read(job)
        if not record["requeued"]:
            break
        write(job, state="PENDING", restarts=restarts + 1)
    code = done.returncode
    state = "COMPLETED" if code == 0 else "FAILED"
    if record["state"] == "CANCELLED":
        state, code = "CANCELLED by 1000", 0
    write(job, state=state, code=f"{code}:0", ended=True)
    return 0


def srun(words):
    """Runs the tasks of a step."""
    options = {}
    while words[0].startswith("--"):
        name, equals, value = words.pop(0).removeprefix("--").partition("=")
        options[name] = value if equals or name == "unbuffered" else words.pop(0)
    assert options["kill-on-bad-exit"] == "0"
    job, count = os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_NTASKS"])
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    each, tasks = count // nodes, []
    for index in range(count):
        ours = dict(
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index % each),
            SLURM_NODEID=str(index // each),
            SLURM_STEP_NODELIST="localhost",
            SLURM_STEP_NUM_TASKS=str(count),
            SLURM_STEP_TASKS_PER_NODE=f"{each}(x{nodes})" if nodes > 1 else str(each),
        )
        files = [
            os.open(
                options[name].replace("%j", job).replace("%t", str(index)),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            )
            for name in ("output", "error")
        ]
        task = subprocess.Popen(
            words, env=dict(os.environ) | ours, stdout=files[0], stderr=files[1]
        )
        (STATE / job / "tasks" / str(task.pid)).touch()
        tasks.append(task)
    codes = {}
    while len(codes) < count:
        for task in tasks:
            if task not in codes and task.poll() is not None:
                (STATE / job / "tasks" / str(task.pid)).unlink()
                codes[task] = task.returncode if task.returncode >= 0 else 128 - task.returncode
        time.sleep(0.05)
    return max(codes.values())


def scancel(words):
    """Signals a job's tasks, or ends the job."""
    numbers = [word for word in words if word.startswith("--signal=")]
    (job,) = [word for word in words if not word.startswith("--")]
    if numbers:
        send(job, getattr(signal, "SIG" + numbers[0].removeprefix("--signal=")))
    else:
        write(job, state="CANCELLED")
        terminate(job)
    return 0


def scontrol(words):
    """Queues a job again."""
    verb, job = words
    assert verb == "requeue"
    record = read(job)
    if "no-requeue" in record["options"]:
        print("Requested operation is presently disabled", file=sys.stderr)
        return 1
    write(job, requeued=True, state="REQUEUED")
    subprocess.Popen(
        [sys.executable, __file__, "terminate", job],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return 0


def squeue(words):
    """Prints the state of a job that has not ended."""
    (job,) = [word.removeprefix("--jobs=") for word in words if word.startswith("--jobs=")]
    assert {"--format=%T", "--noheader"} < set(words)
    if not (STATE / job).exists() or read(job).get("ended"):
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    state = read(job)["state"]
    print("COMPLETING" if state == "CANCELLED" else state)  # until its tasks have ended
    return 0


def sacct(words):
    """Prints state and exit status of a job."""
    (job,) = [word.removeprefix("--jobs=") for word in words if word.startswith("--jobs=")]
    assert "--format=State,ExitCode" in words
    if (STATE / job).exists():
        print("{state}|{code}".format(**read(job)))
    return 0


COMMANDS = dict(sbatch=sbatch, srun=srun, scancel=scancel, scontrol=scontrol, squeue=squeue)
COMMANDS |= dict(sacct=sacct, controller=controller, terminate=lambda words: terminate(*words))


def install(folder):
    """Writes the commands into a folder."""
    for name in ("sbatch", "srun", "scancel", "scontrol", "squeue", "sacct"):
        path = folder / name
        words = shlex.join([sys.executable, __file__, name])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)


if __name__ == "__main__":
    sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
