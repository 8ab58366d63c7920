"""A run of several processes on this machine, as on several hosts; on CPUs they talk over gloo.

``python -m launch.local --processes=2 --config=configs/toy.py --workdir=runs/two``

All other flags are those of ``python -m train``; ``config.host_devices`` are those of one process.
``--restarts=3`` is for a run that nobody looks after: what crashed or hangs is started again.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import contextlib
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
from types import FrameType
from typing import IO, TextIO

from absl import flags

from configs import command
from configs.console import tell
from configs.folders import Folder, run_folder
from launch.supervision import MISTAKE, Ending, Restarts, supervise
from launch.watchdog import Watchdog
from model import manifest
from train import heartbeat
from train.processes.watch import LOST

TRAINING = ("-m", "train")
# Seconds after one has failed, until those that may not know it are asked to end, as they wait for
# it to come; and until those that have not ended are killed.
PATIENCE, GRACE = 15.0, 90.0
READING = 60.0  # seconds for what the ended have said, where a process of theirs keeps it open
# Gloo, of each group that it forms: in pieces, between which another thread's may come.
_NOISE = re.compile(r"\[Gloo\] Rank|peer ranks|is connected to \d*$")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
_STALL = 10.0  # minutes, with --restarts
_OWN = ("processes", "restarts", "stall", "backoff", "backoff_max")  # flags that are not training's


def start(
    index: int, count: int, port: int, arguments: list[str], descriptors: tuple[int, int]
) -> subprocess.Popen[str]:
    """Starts a process of a run; one that is alone needs no coordinator.

    Args:
      index: of the process.
      count: of all.
      port: of their coordinator, on this machine.
      arguments: of ``python -m train``.
      descriptors: of the files for its signs of life.
    """
    place = (f"--coordinator=localhost:{port}", f"--process_id={index}") if count > 1 else ()
    return subprocess.Popen(
        [sys.executable, *TRAINING, *arguments, f"--num_processes={count}", *place],
        env=_QUIET | os.environ | {heartbeat.VARIABLE: ",".join(map(str, descriptors))},
        pass_fds=descriptors,
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
    processes: list[subprocess.Popen[str]],
    patience: float = PATIENCE,
    grace: float = GRACE,
    watchdog: Watchdog | None = None,
) -> tuple[int, str]:
    """Returns the exit status of a run, when all its processes have ended, and what ended it.

    The first that fails gives the status, 128 + the signal where one ended it. The others end by
    themselves; those that have not are asked, then killed. Where one hangs, all are asked at once.

    Args:
      processes: of the run.
      patience: seconds until the others are asked.
      grace: seconds until they are killed.
      watchdog: notices one that hangs; who hangs, or does not end, is asked for its stacks.

    Returns:
      The status, and a sentence on the process that a signal ended, or hung; else an empty one.
    """
    failed, hung, signals = None, "", [(patience, signal.SIGTERM), (grace, signal.SIGKILL)]
    while any(process.poll() is None for process in processes):
        if failed is None and not hung:
            failed, since = _failed(processes), time.monotonic()
            hung = watchdog.stalled(processes) if watchdog and not failed else ""
            if watchdog and hung:
                watchdog.ask(processes)
                since -= patience
        elif signals and time.monotonic() > since + signals[0][0]:
            _, number = signals.pop(0)
            if watchdog and not hung and number == signal.SIGKILL:
                watchdog.ask(processes)
            for process in processes:
                process.send_signal(number)
        time.sleep(0.1)
    if hung:
        return LOST, hung
    failed = failed or _failed(processes) or processes[0]
    code = failed.returncode
    if code >= 0:
        return code, ""
    name = signal.Signals(-code).name
    return 128 - code, f"process {processes.index(failed)} was ended by {name}"


def _failed(processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str] | None:
    """Returns the process that failed; of several at once, not one that fails of another."""
    failed = [process for process in processes if process.poll() not in (None, 0)]
    rank = {LOST: 2, MISTAKE: 3}
    return min(failed, key=lambda p: rank.get(p.returncode, p.returncode > 0), default=None)


def _show(index: int, lines: IO[str], out: TextIO) -> None:
    """Passes on what a process says; process 0 speaks for all."""
    gloo = False  # whether the line before was its
    for line in lines:
        gloo = bool(_NOISE.search(line)) or (gloo and line.strip().isdigit())
        if not gloo:
            said = line.removesuffix("\n")
            tell(f"process {index}: {said}" if index else said, out)


class Group:
    """The processes of a run, started together.

    Attributes:
      asked: signals that asked this process to end.
    """

    def __init__(self, count: int, arguments: list[str], stall: float, workdir: Folder | None):
        """Args: processes; training's flags; minutes that a step may take; the run's folder."""
        self.asked: list[int] = []
        self._count, self._arguments = count, arguments
        self._stall, self._workdir = stall, workdir
        self._processes: list[subprocess.Popen[str]] = []

    def run(self) -> Ending:
        """Starts all, and returns when all have ended."""
        self._processes = []
        with contextlib.ExitStack() as stack:
            try:
                watchdog = stack.enter_context(Watchdog(self._count, self._stall))
                self._start(watchdog)
            except OSError as error:  # no memory, no room, no port
                self._send(signal.SIGKILL)
                for process in self._processes:
                    process.communicate()
                return Ending(1, f"the processes could not be started ({error.strerror})")
            threads = [
                threading.Thread(target=_show, args=(index, lines, out))
                for index, process in enumerate(self._processes)
                for lines, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
            ]
            for thread in threads:
                thread.start()
            status, reason = wait(self._processes, watchdog=watchdog)
            for thread in threads:
                thread.join(READING)
            return Ending(status, reason, watchdog.step(), watchdog.keep(self._workdir))

    def _start(self, watchdog: Watchdog) -> None:
        port = free_port()
        for index in range(self._count):
            files = watchdog.descriptors(index)
            self._processes.append(start(index, self._count, port, self._arguments, files))
        if self.asked:  # meanwhile
            self._send(signal.SIGTERM)

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Has all stop, at one step where they are joined; a second signal ends them at once."""
        del frame
        self.asked.append(number)
        self._send(signal.SIGTERM if len(self.asked) == 1 else signal.SIGKILL)

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def _define_flags() -> None:
    command.define_config()
    flags.DEFINE_integer("processes", 1, "How many processes to start.", 1)
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
    flags.DEFINE_integer(
        "restarts",
        0,
        "How many times in a row all are started again after a crash or a hang; once the run has "
        "come further than before, the count begins anew.",
        0,
    )
    flags.DEFINE_float(
        "stall",
        None,
        "Minutes without a finished step after which all show the stacks of their threads and are "
        "ended, as after a crash; to start, evaluate and save may take three times as long, at "
        f"least 30. 0: however long; the default is {_STALL:g} with --restarts, else 0.",
        0.0,
    )
    flags.DEFINE_float(
        "backoff", 5.0, "Seconds before the first restart in a row, doubled before each further.", 0
    )
    flags.DEFINE_float("backoff_max", 300.0, "Seconds before a restart, at most.", 0)


def main() -> None:
    """Runs ``--processes`` processes of a run; exits with the status of the first that fails."""
    given = flags.FLAGS
    command.config()
    workdir = run_folder(given.workdir, "--workdir") if given.workdir else None
    stall = _minutes(given.stall, given.restarts)
    group = Group(given.processes, _of_train(sys.argv[1:]), stall, workdir)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, group.forward)
    restarts = Restarts(given.restarts, given.backoff, given.backoff_max)
    saved = functools.partial(_newest_step, workdir)
    sys.exit(supervise(group.run, restarts, saved, group.asked))


def _minutes(stall: float | None, restarts: int) -> float:
    """Returns ``--stall``, or its default: what nobody looks after is looked after."""
    if stall is not None:
        return stall
    return _STALL if restarts else 0.0


def _newest_step(workdir: Folder | None) -> int:
    steps = manifest.whole_steps(workdir) if workdir else []
    return steps[-1] if steps else 0


def _of_train(words: list[str]) -> list[str]:
    """Returns the flags without those of this command alone, in either of absl's two forms."""
    kept, skip = [], False
    for word in words:
        name = word.lstrip("-").partition("=")[0] if word.startswith("-") else ""
        if skip or name in _OWN:
            skip = not skip and "=" not in word
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    command.run(main, _define_flags)
