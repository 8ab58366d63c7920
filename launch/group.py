"""The processes of a run on one machine: started together, watched, ended together."""

import contextlib
import ctypes
import dataclasses
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO, TextIO

from configs.console import tell
from configs.folders import Folder
from launch.supervision import MISTAKE, Ending
from launch.watchdog import Watchdog
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


@dataclasses.dataclass(frozen=True)
class Share:
    """The processes of a run that are this machine's."""

    count: int
    first: int = 0  # index of the first of them
    total: int = 0  # of the run; 0: these are all
    coordinator: str = ""  # HOST:PORT of process 0; empty: a free port of this machine

    @property
    def of_all(self) -> int:
        """Returns how many processes the run has."""
        return self.total or self.count

    def indices(self) -> range:
        """Returns their indices in the run."""
        return range(self.first, self.first + self.count)


@dataclasses.dataclass(frozen=True)
class Start:
    """What every process of a group is started with."""

    arguments: Sequence[str]  # of ``python -m train``
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)  # added to this one's
    inherited: tuple[int, ...] = ()  # descriptors that stay open as long as one of them lives

    def __call__(
        self, index: int, count: int, coordinator: str, descriptors: tuple[int, int]
    ) -> subprocess.Popen[str]:
        """Starts a process of a run; one that is alone needs no coordinator.

        Args:
          index: of the process in the run.
          count: of all.
          coordinator: HOST:PORT.
          descriptors: of the files for its signs of life.
        """
        ours = {heartbeat.VARIABLE: ",".join(map(str, descriptors))}
        return subprocess.Popen(
            self.words(index, count, coordinator),
            env={**_QUIET, **os.environ, **self.environment, **ours},
            pass_fds=(*descriptors, *self.inherited),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to the launcher alone
            preexec_fn=functools.partial(_end_with_parent, os.getpid()),
        )

    def words(self, index: int, count: int, coordinator: str) -> list[str]:
        """Returns the command of a process; see ``__call__``."""
        place = (f"--coordinator={coordinator}", f"--process_id={index}") if count > 1 else ()
        return [sys.executable, *TRAINING, *self.arguments, f"--num_processes={count}", *place]


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
    first: int = 0,
) -> tuple[int, str]:
    """Returns the exit status of a run, when all its processes have ended, and what ended it.

    The first that fails gives the status, 128 + the signal where one ended it. The others end by
    themselves; those that have not are asked, then killed. Where one hangs, all are asked at once.

    Args:
      processes: of the run.
      patience: seconds until the others are asked.
      grace: seconds until they are killed.
      watchdog: notices one that hangs; who hangs, or does not end, is asked for its stacks.
      first: index in the run of the first of them.

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
    return 128 - code, f"process {first + processes.index(failed)} was ended by {name}"


def _failed(processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str] | None:
    """Returns the process that failed; of several at once, not one that fails of another."""
    failed = [process for process in processes if process.poll() not in (None, 0)]
    rank = {LOST: 2, MISTAKE: 3}
    return min(failed, key=lambda p: rank.get(p.returncode, p.returncode > 0), default=None)


def _show(index: int, lines: IO[str], out: TextIO) -> None:
    """Passes on what a process says; process 0 speaks for all."""
    gloo = False  # whether the line before was its
    with lines:
        for line in lines:
            gloo = bool(_NOISE.search(line)) or (gloo and line.strip().isdigit())
            if not gloo:
                said = line.removesuffix("\n")
                tell(f"process {index}: {said}" if index else said, out)


class Group:
    """The processes of a run on one machine, started together.

    Attributes:
      asked: signals that asked this process to end.
    """

    def __init__(
        self, share: Share, start: Start, stall: float = 0.0, workdir: Folder | None = None
    ):
        """Args: which processes; what starts one; minutes a step may take; the run's folder."""
        self.asked: list[int] = []
        self._share, self._start_one = share, start
        self._stall, self._workdir = stall, workdir
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def pids(self) -> list[int]:
        """Returns the ids of the processes that have been started."""
        return [process.pid for process in self._processes]

    def run(self, watch: Callable[[Watchdog], None] | None = None) -> Ending:
        """Starts all, and returns when all have ended.

        Args:
          watch: is given what reads the processes' signs of life, once they are started.
        """
        self._processes = []
        with contextlib.ExitStack() as stack:
            try:
                share = self._share
                watchdog = stack.enter_context(Watchdog(share.count, self._stall, share.first))
                self._start(watchdog)
            except OSError as error:  # no memory, no room, no port
                self._send(signal.SIGKILL)
                for process in self._processes:
                    process.communicate()
                return Ending(1, f"the processes could not be started ({error.strerror})")
            if watch is not None:
                watch(watchdog)
            threads = [
                threading.Thread(target=_show, args=(index, lines, out))
                for index, process in zip(share.indices(), self._processes, strict=True)
                for lines, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
            ]
            for thread in threads:
                thread.start()
            status, reason = wait(self._processes, watchdog=watchdog, first=share.first)
            for thread in threads:
                thread.join(READING)
            return Ending(status, reason, watchdog.step(), watchdog.keep(self._workdir))

    def _start(self, watchdog: Watchdog) -> None:
        share = self._share
        coordinator = share.coordinator or f"localhost:{free_port()}"
        for index in share.indices():
            files = watchdog.descriptors(index - share.first)
            started = self._start_one(index, share.of_all, coordinator, files)
            self._processes.append(started)
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
