"""A run of several processes on this machine, as on several hosts; on CPUs they talk over gloo.

``python -m launch.local --processes=2 --config=configs/toy.py --workdir=runs/two``

All other flags are those of ``python -m train``; ``config.host_devices`` are those of one process.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import ctypes
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

from absl import flags

from configs import command
from configs.errors import UserError

ROOT = Path(__file__).parent.parent
# Seconds after one has failed, until those that may not know it are asked to end, as they wait for
# it to come; and until those that have not ended are killed.
PATIENCE, GRACE = 15.0, 90.0
# Gloo, of each group that it forms: in pieces, between which another thread's may come.
_NOISE = re.compile(r"\[Gloo\] Rank|peer ranks|is connected to \d*$")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}


def start(index: int, count: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    """Starts a process of a run.

    Args:
      index: of the process.
      count: of all.
      port: of their coordinator, on this machine.
      arguments: of ``python -m train``.
    """
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "train", *arguments),
            f"--coordinator=localhost:{port}",
            f"--num_processes={count}",
            f"--process_id={index}",
        ],
        env=_QUIET | os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes here alone
        preexec_fn=functools.partial(_end_with_parent, os.getpid()),
    )


def _end_with_parent(parent: int) -> None:
    """Has Linux send SIGTERM to this process when the one that started it is killed."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before Linux was asked
            os._exit(128 + signal.SIGTERM)


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def wait(
    processes: list[subprocess.Popen[str]], patience: float = PATIENCE, grace: float = GRACE
) -> tuple[int, str]:
    """Returns the exit status of a run, when all its processes have ended, and what ended it.

    The first that fails gives the status, 128 + the signal where one ended it. The others end by
    themselves; those that have not are asked, then killed.

    Args:
      processes: of the run.
      patience: seconds until the others are asked.
      grace: seconds until they are killed.

    Returns:
      The status, and a sentence on the process that a signal ended; else an empty one.
    """
    failed, signals = None, [(patience, signal.SIGTERM), (grace, signal.SIGKILL)]
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = next((p for p in processes if p.poll() not in (None, 0)), None)
            since = time.monotonic()
        elif signals and time.monotonic() > since + signals[0][0]:
            _, number = signals.pop(0)
            for process in processes:
                process.send_signal(number)
        time.sleep(0.1)
    failed = failed or next((p for p in processes if p.returncode), processes[0])
    code = failed.returncode
    if code >= 0:
        return code, ""
    name = signal.Signals(-code).name
    return 128 - code, f"process {processes.index(failed)} was ended by {name}"


def _show(index: int, lines: IO[str], out: IO[str]) -> None:
    """Passes on what a process says; process 0 speaks for all."""
    gloo = False  # whether the line before was its
    for line in lines:
        gloo = bool(_NOISE.search(line)) or (gloo and line.strip().isdigit())
        if not gloo:
            print(f"process {index}: {line}" if index else line, end="", file=out, flush=True)


def _define_flags() -> None:
    command.define_config()
    flags.DEFINE_integer("processes", None, "How many processes to start.", 1)
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")


def main() -> None:
    """Runs ``--processes`` processes of a run; exits with the status of the first that fails."""
    if flags.FLAGS.processes is None:
        raise UserError("--processes is missing; say how many, such as --processes=2.")
    command.config()
    arguments, count = _of_train(sys.argv[1:]), flags.FLAGS.processes
    port = free_port()
    processes = [start(index, count, port, arguments) for index in range(count)]
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        """Has all stop, at one step where they are joined; a second signal ends them at once."""
        del frame
        asked.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    threads = [
        threading.Thread(target=_show, args=(index, lines, out))
        for index, process in enumerate(processes)
        for lines, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for thread in threads:
        thread.start()
    status, ended = wait(processes)
    for thread in threads:
        thread.join()
    if ended and not asked:
        print(f"error: {ended}; the same command goes on from what was saved.", file=sys.stderr)
    sys.exit(status)


def _of_train(words: list[str]) -> list[str]:
    """Returns the flags without ``--processes``, in either of absl's two forms."""
    kept, skip = [], False
    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if skip or name == "processes":
            skip = not skip and "=" not in word
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    command.run(main, _define_flags)
