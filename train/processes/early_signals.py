"""A signal to one of several processes while there is nothing to save: all end at once.

Python runs its handlers between two instructions, and so not while a step compiles; but the number
of a signal it writes to a descriptor at once, where a thread reads it.
"""

import contextlib
import select
import signal
import socket
import threading
from types import FrameType
from typing import Any

from train.processes.abort import end
from train.processes.watch import ENDED, FAILED, LEAVING, LINGER, Watch

PATIENCE = LINGER + 2 * LEAVING  # seconds in which the others are told


class EarlySignals(threading.Thread):
    """Takes SIGTERM and Ctrl-C until ``close``, when a run's first step has been compiled."""

    def __init__(self, watch: Watch, first: bool):
        """Takes the signals; to be called in the main thread.

        Args:
          watch: tells the others.
          first: whether this is process 0, with whom the coordinator ends.
        """
        super().__init__(name="early signals", daemon=True)
        self._watch, self._first = watch, first
        self._over, self._lock = False, threading.Lock()
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before: dict[int, Any] = {
            number: signal.signal(number, self._later)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN  # as in a shell's background
        }

    def run(self) -> None:
        """Waits for a signal, and ends all processes by it."""
        while not self._over:
            select.select([self._read], [], [])
            self._look()

    def close(self) -> None:
        """Leaves the signals to those who had them, or have taken them since."""
        if self._over:
            return
        self._look(last=True)
        signal.set_wakeup_fd(-1)
        self._write.send(b"\0")  # the thread goes on, and ends

    def _look(self, last: bool = False) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            self._over = self._over or last
            if last or not self._over:
                for number in self._read.recv(64):
                    if number in self._before:
                        self._end(number)

    def _end(self, number: int) -> None:
        name = signal.Signals(number).name
        sentence = f"asked to end by {name}, with nothing new to save; run again."
        status = 128 + number
        # In a thread: a coordinator that does not answer keeps nobody from ending.
        told = threading.Thread(target=self._tell, args=(sentence, status), daemon=True)
        told.start()
        told.join(PATIENCE)
        end(sentence, status)

    def _tell(self, sentence: str, status: int) -> None:
        self._watch.say(FAILED, sentence, status)
        if self._first:
            self._watch.wait_for_others(FAILED, ENDED)

    def _later(self, number: int, frame: FrameType | None) -> None:
        """Python's handler, which stays when this is over: does what the one before does."""
        del frame
        if self._over:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
