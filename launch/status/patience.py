"""What may hang, as a disk or a store that does not answer: done in threads, waited for so long."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

AT_ONCE = 16
TURN = 5.0  # seconds that one waits for its turn behind others, which may hang


class Patience:
    """Jobs by name, of which each is done by one thread at once."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}  # jobs on their way, and since when
        self._done: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._turns = threading.Semaphore(AT_ONCE)

    def results(self, jobs: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
        """Does jobs, and returns what came in time, be it of a job that was begun before.

        Args:
          jobs: which raise nothing; one that is still on its way is not begun again.
          seconds: to wait for them.
        """
        until = time.monotonic() + seconds
        with self._changed:
            for name, job in jobs.items():
                if name not in self._begun:
                    self._begun[name] = time.monotonic()
                    thread = threading.Thread(target=self._do, args=(name, job), daemon=True)
                    thread.start()
            while not all(name in self._done for name in jobs):
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    break
            return {name: self._done.pop(name) for name in jobs if name in self._done}

    def late(self, name: str) -> float:
        """Returns for how many seconds a job has been on its way."""
        with self._changed:
            now = time.monotonic()
            return now - self._begun.get(name, now)

    def _do(self, name: str, job: Callable[[], Any]) -> None:
        with contextlib.ExitStack() as stack:
            if self._turns.acquire(timeout=TURN):
                stack.callback(self._turns.release)
            done = job()
            with self._changed:
                self._begun.pop(name)
                self._done[name] = done
                self._changed.notify_all()
