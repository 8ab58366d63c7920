"""Where a process is: its host, its number there, and whether it still lives."""

import os
import socket
from pathlib import Path
from typing import Any

# What tells this system, since its start, and its space of process ids from others; containers may
# have one host name.
SYSTEM = ("host", "boot", "pid_space")
_PROC = Path("/proc")


def here() -> dict[str, Any]:
    """Returns where this process is: plain data, for others to read.

    Where there is no /proc, host and pid are all; else ``boot``, ``pid_space`` and ``started``
    (clock ticks from the system's start) tell it from every other that had the same number.
    """
    pid = os.getpid()
    found: dict[str, Any] = dict(host=socket.gethostname(), pid=pid)
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        found |= dict(boot=boot, pid_space=os.readlink(_PROC / "self/ns/pid"))
    except OSError:
        return found
    return found | dict(started=started(pid))


def is_here(about: dict[str, Any]) -> bool:
    """Tells whether a process was started on this system since its start."""
    mine = here()
    return all(about.get(name) == mine.get(name) for name in SYSTEM)


def is_dead(about: dict[str, Any]) -> bool:
    """Tells whether a process was one of this system that has ended."""
    pid = about.get("pid")
    # The numbers of a process are positive; to send others a signal means many.
    if not is_here(about) or not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    if _fields(pid)[:1] == ["Z"]:  # which nobody has asked how it ended
        return True
    began, then = started(pid), about.get("started")
    return isinstance(then, int) and began is not None and began != then


def started(pid: int) -> int | None:
    """Returns when a process was started, in clock ticks since the system; None: not known."""
    fields = _fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def is_stopped(pid: int) -> bool:
    """Tells whether a signal has stopped a process, where the system says so."""
    return _fields(pid)[:1] == ["T"]


def _fields(pid: int) -> list[str]:
    """Returns what /proc/PID/stat says after the process' name, which may hold anything."""
    try:
        about = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return about.rpartition(")")[2].split()
