"""A thread that follows a job on one host, across connections that are lost."""

import contextlib
import sys
import threading
import time
from typing import Any

from configs.console import tell
from configs.errors import UserError
from launch.hosts.call import Call, Unreachable
from launch.hosts.host import ALIVE, Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan

SILENCE = 30.0  # seconds without a word, after which a connection is made anew: six beats
AGAIN, LONGEST = 1.0, 15.0  # seconds until the first try to connect again, and between two at most


class Follower(threading.Thread):
    """Reads a host's log and state.

    Attributes:
      state: the latest; empty before any.
      ended: whether the host's part has ended.
      reason: why the host cannot be reached; empty while it is.
      mistake: what ends the launcher itself.
    """

    def __init__(self, host: Host, plan: Plan, attempt: str, logs: Logs):
        """Args: the host; the job; its attempt; where what is said goes."""
        super().__init__(name=f"follower of {host.name}", daemon=True)
        self.host = host
        self.state: dict[str, Any] = {}
        self.ended, self.reason = False, ""
        self.mistake: UserError | None = None
        self._plan, self._attempt, self._logs = plan, attempt, logs
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._call: Call | None = None

    def run(self) -> None:
        """Follows until the host's part has ended, or ``close``."""
        wait = AGAIN
        while not self._closed.is_set():
            try:
                self.ended = self._follow()
                self._logs.end(self.host, self._attempt)
                return
            except Unreachable as error:
                if self._closed.is_set():
                    return
                if not self.reason and self.silent() > 2 * ALIVE:
                    tell(f"{self.host.name} cannot be reached ({error.reason})", sys.stderr)
                    self.reason = error.reason
                wait = AGAIN if self.silent() < wait else min(2 * wait, LONGEST)
            except UserError as error:
                self.mistake = error
                return
            self._closed.wait(wait)

    def silent(self) -> float:
        """Returns for how many seconds the host has said nothing; 0 when its part has ended."""
        return 0.0 if self.ended else time.monotonic() - self._heard

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        with contextlib.suppress(AttributeError):
            self._call.close()  # type: ignore[union-attr]
        self.join()

    def _follow(self) -> bool:
        """Reads until the host's part has ended, or ``close``; returns whether it has."""
        plan, attempt = self._plan, self._attempt
        known = self._logs.known(self.host, attempt)
        request = dict(root=plan.root, name=plan.name, attempt=attempt, offset=known)
        with Call(self.host, "follow", **request) as call:
            self._call = call
            for message in call.messages(SILENCE):
                if self._closed.is_set():
                    return False
                self._heard = time.monotonic()
                if self.reason:
                    tell(f"{self.host.name} is reached again", sys.stderr)
                    self.reason = ""
                if "data" in message:
                    self._logs.add(self.host, attempt, message["data"])
                else:
                    self.state = message.get("state") or message["done"]
        return True
