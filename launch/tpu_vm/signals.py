"""Time and signals, as a command meets them that has something to delete before it ends."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Protocol


class Clock(Protocol):
    """Time, which tests make themselves."""

    def now(self) -> float:
        """Returns seconds since 1970."""

    def sleep(self, seconds: float, asked: Sequence[int]) -> None:
        """Waits; less where a signal is noted in ``asked``."""


class Signals:
    """Notes signals while it is active; the second says what may be left, and ends at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    @contextlib.contextmanager
    def noted(self, left: Callable[[], str]) -> Iterator[None]:
        """Keeps signals from ending the process; those that are ignored, as by nohup, stay so.

        Args:
          left: returns what may be left and how to delete it.
        """
        self._left = left
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGHUP:
            return  # a shell sends one and the system another, when a terminal is closed
        self.asked.append(number)
        with contextlib.suppress(OSError):  # of a terminal that is closed
            if len(self.asked) == 1:
                os.write(2, b"ending: what there is is deleted; once more leaves it as it is\n")
            elif left := self._left():
                os.write(2, f"error: {left}\n".encode())
        if len(self.asked) > 1:
            os._exit(128 + number)


class RealClock:
    """The clock on the wall."""

    def now(self) -> float:
        """Returns seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float, asked: Sequence[int]) -> None:
        """Waits; less where a signal is noted in ``asked``."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0 and not asked:
            time.sleep(min(rest, 0.2))
