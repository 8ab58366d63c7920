"""Signs of life of a process that trains, for the supervisor that started it, and what it does.

The supervisor hands over two open files (``launch/watchdog.py``): one for the latest sign, and one
for the stacks of all threads, which the process writes at SIGUSR1 though its main thread be stuck
outside of Python. A process that nobody supervises gives no signs; what it does it knows all the
same, for ``train/alive.py``.
"""

import contextlib
import dataclasses
import faulthandler
import os
import signal
import struct
import time

VARIABLE = "MANYHEADS_HEARTBEAT"  # the descriptors of the two files
_FORM = struct.Struct("=qq??")

STARTING, RESTORING, COMPILING = "starting", "restoring", "compiling"
TRAINING, EVALUATING, SAVING = "training", "evaluating", "saving"


@dataclasses.dataclass(frozen=True)
class Sign:
    """The latest sign of life of a process."""

    count: int = 0  # of signs; none before it listens to SIGUSR1
    step: int = -1  # the last that it has finished; -1: none yet
    busy: bool = True  # with what may take longer than a step
    joined: bool = False  # with the other processes of its run

    def write(self, file: int) -> None:
        """Writes it in place of the one before, which takes no room on a disk that is full."""
        os.pwrite(file, _FORM.pack(self.count, self.step, self.busy, self.joined), 0)

    @classmethod
    def read(cls, file: int) -> "Sign":
        """Returns the sign that a file holds."""
        return cls(*_FORM.unpack(os.pread(file, _FORM.size, 0)))


@dataclasses.dataclass(frozen=True)
class Doing:
    """What a process does at present."""

    what: str = STARTING
    step: int | None = None  # taken in all; None: not known yet
    since: float = dataclasses.field(default_factory=time.monotonic)  # the latest sign


_sign, _file = Sign(), -1
_stacks: int | None = None
_doing = Doing()


def begin() -> None:
    """Gives signs from here on, where a supervisor asks for them."""
    global _file, _stacks
    given = os.environ.pop(VARIABLE, "")  # what this process starts has a life of its own
    if given:
        _file, _stacks = map(int, given.split(","))
        faulthandler.register(signal.SIGUSR1, _stacks)
        busy()


def joined() -> None:
    """Says that the processes of the run have found each other."""
    global _sign
    _sign = dataclasses.replace(_sign, joined=True)
    busy()


def finished(step: int) -> None:
    """Says that a step has been finished, and that the next is to take no longer than a step."""
    _give(step, False)
    _do(TRAINING, step)


def busy(what: str = STARTING, step: int | None = None) -> None:
    """Says that the process goes on, with what may take longer.

    Args:
      what: such as an evaluation or a save.
      step: steps taken in all; None: as before.
    """
    _give(_sign.step, True)
    _do(what, _doing.step if step is None else step)


def forget() -> None:
    """Says that a run begins, which has taken no step that is known yet."""
    _do(STARTING, None)


def doing() -> Doing:
    """Returns what this process does."""
    return _doing


def stacks() -> int | None:
    """Returns the descriptor at which it writes its stacks at SIGUSR1; None: it does not listen."""
    return _stacks


def _do(what: str, step: int | None) -> None:
    global _doing
    _doing = Doing(what, step)


def _give(step: int, busy: bool) -> None:
    global _sign
    if _file >= 0:
        _sign = Sign(_sign.count + 1, step, busy, _sign.joined)
        with contextlib.suppress(OSError):
            _sign.write(_file)
