"""Where the processes of a run are at this moment: the stacks of those on this machine.

A process that ``launch.local`` started, or another launcher by it, writes them itself when SIGUSR1
comes, wherever its main thread is. Any other would be ended by that signal, so it is sent only to
one that catches it and has said where it writes; for the others there is py-spy.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from launch.status import loose
from launch.status.found import Process
from train.processes.whereabouts import is_dead, is_here, is_stopped

WRITING = 5.0  # seconds that a process has to write
SPYING = 60.0  # seconds that py-spy has
LARGEST = 1 << 22  # bytes


class Unknown(Exception):
    """Why the stacks of a process cannot be shown, as a sentence ends."""


def of(process: Process) -> str:
    """Returns the stacks of all threads of a process.

    Raises:
      Unknown: it is elsewhere, has ended, or neither listens nor can be looked into.
    """
    pid = process.pid
    if pid is None or not is_here(process.about):
        raise Unknown("runs elsewhere; give the same command there")
    if sys.platform != "linux":
        return _spy(pid, False)
    try:
        handle = os.pidfd_open(pid)  # which no process that comes after it can have
    except ProcessLookupError as error:
        raise Unknown("has ended") from error
    except OSError:
        return _spy(pid, is_stopped(pid))
    try:
        if is_dead(process.about):
            raise Unknown("has ended")
        if process.stacks is None or not catches(pid, signal.SIGUSR1) or is_stopped(pid):
            return _spy(pid, is_stopped(pid))
        return _asked(pid, handle, process.stacks)
    finally:
        os.close(handle)


def catches(pid: int, number: int) -> bool:
    """Tells whether a process has a handler of its own for a signal, as /proc says."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        caught = next(line for line in lines.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    except (OSError, StopIteration, ValueError, IndexError):
        return False


def _asked(pid: int, handle: int, descriptor: int) -> str:
    """Has a process write its stacks into its file, and returns what is new there."""
    try:
        file = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return _spy(pid, False)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            return _spy(pid, False)
        signal.pidfd_send_signal(handle, signal.SIGUSR1)
        text, until = b"", time.monotonic() + WRITING
        while time.monotonic() < until:
            time.sleep(0.3)
            now = os.pread(file, LARGEST, about.st_size)
            if now and now == text:
                break
            text = now
    except OSError as error:
        raise Unknown(f"cannot be asked ({error.strerror})") from error
    finally:
        os.close(file)
    if not text:
        raise Unknown(f"wrote no stacks in {WRITING:g} s")
    return text.decode(errors="replace")


def _spy(pid: int, stopped: bool) -> str:
    """Returns what py-spy sees of a process.

    Raises:
      Unknown: it is not installed, or may not look.
    """
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        if stopped:
            raise Unknown(
                f"was stopped by a signal; let it go on (kill -CONT {pid}), or install py-spy "
                "(pip install py-spy)"
            )
        raise Unknown(
            "does not listen, as nobody supervises it; install py-spy (pip install py-spy), or "
            "start runs by launch.local"
        )
    # It would stop the process to look, and so wait for one that is stopped.
    words = [program, "dump", "--pid", str(pid), *(["--nonblocking"] if stopped else [])]
    said = ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=SPYING, check=False
        )
        if done.returncode == 0:
            return done.stdout
        said = loose.words(done.stderr)
    raise Unknown(f"does not listen, and py-spy cannot look into it ({said or 'it said nothing'})")
