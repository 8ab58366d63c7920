"""What is said between a launcher and a host: JSON, a line each, and bytes where announced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_lock = threading.Lock()


class Refused(Exception):
    """What the launcher is told when an action cannot be done: a sentence for the user."""

    passing = False  # whether the same may do when it is asked again


class Stumbled(Refused):
    """The same of what may pass, such as a registry of packages that does not answer."""

    passing = True


def send(**message: Any) -> None:
    """Says a message; ends this program where nobody listens any more."""
    line = json.dumps(message) + "\n"
    with _lock:
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except OSError:
            os._exit(1)


def send_bytes(data: bytes) -> None:
    """Says how many bytes come, and then the bytes."""
    line = json.dumps(dict(bytes=len(data))).encode() + b"\n"
    with _lock:
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(line + data)
            sys.stdout.buffer.flush()
        except OSError:
            os._exit(1)


def receive() -> dict[str, Any]:
    """Returns the next message.

    Raises:
      EOFError: the launcher has gone.
    """
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def receive_bytes(count: int) -> bytes:
    """Returns bytes that were announced.

    Raises:
      EOFError: the launcher has gone before all have come.
    """
    data = sys.stdin.buffer.read(count)
    if len(data) < count:
        raise EOFError
    return data


def answer(act: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Does what a request asks, and says how that went: ``done``, or ``refused`` with why."""
    try:
        request = receive()
        send(done=act(request))
    except EOFError:
        sys.exit(1)
    except Refused as refusal:
        send(refused=str(refusal), passing=refusal.passing)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        send(refused=f"{error.strerror or error}{where}", errno=error.errno)


def end_with_launcher(then: Callable[[], None] | None = None) -> None:
    """From here on ends this program, and what it has started, when the launcher has gone."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        if then is not None:
            then()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def kill_group(pid: int) -> None:
    """Kills a process that leads a group, with the group."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
