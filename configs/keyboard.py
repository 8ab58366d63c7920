"""Ctrl-C: whenever it comes, a command ends with one sentence and exit status 130.

Nothing is raised, which a library could catch or lose: the process ends where it stands. Whatever
is saved is saved whole or not at all, and while a run trains, ``Interrupt`` takes the signal.

A command begins so, before the imports that take seconds; imported as a module it does not::

    from configs import keyboard

    if __name__ == "__main__":
        keyboard.end_at_once()
"""

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn


def end_at_once() -> None:
    """From here on Ctrl-C ends the process, unless a shell has it ignored, as in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


class Interrupt:
    """While active, notes the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(
        self,
        numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM),
        then: Callable[[], None] | None = None,
    ) -> None:
        """Args: the signals; what else to do at the first one."""
        self.signal: int | None = None
        self._numbers, self._then = numbers, then
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        if self._then is not None:
            self._then()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    os.write(2, b"stopped by the keyboard\n")
    os._exit(128 + number)
