"""Whether a group of processes still gets on; if not, where each of its threads is."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO

from configs.console import tell
from configs.errors import UserError
from configs.files import make_folder, write_text
from configs.folders import Folder
from train.heartbeat import Sign
from train.processes.whereabouts import is_stopped

# What may take longer than a step has three times as long, and half an hour at least: to start,
# compile, read a saved step, evaluate, save.
LONGER, LONGEST = 3.0, 30.0  # times; minutes
WRITING = 5.0  # seconds that processes have to write their stacks
ASLEEP = 30.0  # seconds in which this process did not look, as it was stopped itself
STACKS = "stacks"  # the folder of a workdir


class Watchdog:
    """Reads the signs of life of one group of processes.

    Attributes:
      stacks: by process, what it wrote when it was asked where its threads are.
    """

    def __init__(self, count: int, stall: float = 0.0, first: int = 0):
        """Args: processes; minutes that a step may take, 0: any; index of the first of them."""
        self.first = first
        self.stacks: dict[int, str] = {}
        self._stall = stall
        # Without names: nothing is left behind, and no cleaner of old files finds them.
        self._files = [(_file(), _file()) for _ in range(count)]
        for signs, _ in self._files:
            Sign().write(signs.fileno())
        self._looked = time.monotonic()
        self._latest = [(Sign(), self._looked)] * count  # and when it was new
        self._before = [0] * count  # bytes of stacks that others asked for

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the files."""
        for pair in self._files:
            for file in pair:
                file.close()

    def descriptors(self, index: int) -> tuple[int, int]:
        """Returns the files that a process is given: for its signs, for its stacks."""
        signs, stacks = self._files[index]
        return signs.fileno(), stacks.fileno()

    def step(self) -> int:
        """Returns the last step that a process has finished; -1 where there is none."""
        return max(self._sign(index).step for index in range(len(self._files)))

    def joined(self) -> bool:
        """Tells whether all processes have found those of the run."""
        return all(self._sign(index).joined for index in range(len(self._files)))

    def stalled(self, processes: list[subprocess.Popen[str]]) -> str:
        """Returns which process no longer gives signs, and for how long, as a sentence begins.

        It is empty while all do; those that have ended owe none.
        """
        now = time.monotonic()
        asleep, self._looked = now - self._looked > ASLEEP, now
        for index in range(len(processes)):
            sign = self._sign(index)
            if asleep or sign != self._latest[index][0]:
                self._latest[index] = (sign, now)
        due = {
            index: self._latest[index][1] + 60 * self._allowed(index)
            for index, process in enumerate(processes)
            if process.poll() is None
        }
        if not self._stall or not due or now < min(due.values()):
            return ""
        silent = min(due, key=lambda index: due[index])
        step = self._latest[silent][0].step
        what = f"nothing after step {step}" if step >= 0 else "no step"
        stopped = [
            f"; process {self.first + i} was stopped by a signal"
            for i in due
            if is_stopped(processes[i].pid)
        ]
        return (
            f"process {self.first + silent} has finished {what} for {self._allowed(silent):g} min "
            f"(--stall={self._stall:g}){''.join(stopped)}"
        )

    def ask(self, processes: list[subprocess.Popen[str]]) -> None:
        """Has processes write the stacks of all their threads, and shows them."""
        listen = [i for i, p in enumerate(processes) if p.poll() is None and self._sign(i).count]
        self._before = [os.fstat(self.descriptors(i)[1]).st_size for i in range(len(processes))]
        for number in (signal.SIGUSR1, signal.SIGCONT):  # who is stopped writes when it goes on
            for index in listen:
                processes[index].send_signal(number)
        before: dict[int, str] = {}
        until = time.monotonic() + WRITING
        while time.monotonic() < until:
            self.stacks = {index: self._written(index) for index in listen}
            if all(self.stacks.values()) and self.stacks == before:
                break
            before = self.stacks
            time.sleep(0.3)
        for index, text in self.stacks.items():
            for line in text.splitlines() or ["it wrote no stacks"]:
                tell(f"process {self.first + index}: {line}", sys.stderr)

    def keep(self, workdir: Folder | None) -> str:
        """Writes the stacks into a run's folder.

        Returns:
          Where they are, as half a sentence; empty where none were written.
        """
        if not any(self.stacks.values()):
            return ""
        shown = "the stacks of its threads are above"
        if workdir is None:
            return shown
        folder = workdir / STACKS / time.strftime("%Y%m%d-%H%M%S")
        try:
            make_folder(folder, str(folder))
            for index, text in self.stacks.items():
                write_text(folder / f"process-{self.first + index}.txt", text)
        except UserError:
            return shown
        return f"{shown} and in {folder}"

    def _allowed(self, index: int) -> float:
        """Returns for how many minutes a process may give no sign."""
        sign, _ = self._latest[index]
        long = sign.busy or sign.step < 0
        return max(LONGER * self._stall, LONGEST) if long else self._stall

    def _sign(self, index: int) -> Sign:
        return Sign.read(self.descriptors(index)[0])

    def _written(self, index: int) -> str:
        file = self.descriptors(index)[1]  # at an offset: the process shares the file's place
        size = os.fstat(file).st_size - self._before[index]
        return os.pread(file, size, self._before[index]).decode(errors="replace")


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile(buffering=0)
