"""A sentence where jaxlib aborts the process, as it does when the coordinator has gone.

Its own message names no process, and it offers Python no way to be asked first.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

LAST = 3.0  # seconds for what is to be done before the end

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Any] = []
_before_end: Callable[[str, int], None] | None = None


def before_end(act: Callable[[str, int], None] | None) -> None:
    """Has ``end`` do something before, but after an abort, with its sentence and status."""
    global _before_end
    _before_end = act


def on_abort(last_words: Callable[[], tuple[str, int]]) -> None:
    """Has SIGABRT end the process with a sentence on standard error and an exit status.

    Python's own handlers run after the instruction that was interrupted, and none comes after an
    abort; a C function runs at once, in the thread that aborts.

    Args:
      last_words: returns the sentence and the status.
    """

    def handle(number: int) -> None:
        before_end(None)  # where it aborts, it may hold what that would wait for
        sentence, status = last_words()
        end(sentence, status)

    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, _Handler]
    libc.signal.restype = ctypes.c_void_p
    _kept.append(_Handler(handle))  # must live as long as the process
    libc.signal(signal.SIGABRT, _kept[-1])


def end(sentence: str, status: int) -> None:
    """Ends the process where it stands, with a sentence, though nobody reads it any more."""
    if _before_end is not None:
        # In a thread: a disk that does not answer keeps nobody from ending.
        act = threading.Thread(target=_before_end, args=(sentence, status), daemon=True)
        act.start()
        act.join(LAST)
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # a bar of progress hides the cursor
        os.write(2, f"error: {sentence}\n".encode())
    os._exit(status)
