"""Where a host keeps what it runs: code by digest, environments by digest, jobs by name."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from typing import Any

STATE, LOCK, JOB = "state.json", "lock", "job.json"  # in the folder of a job
WANTED = "wanted"  # there: the attempt that somebody had stopped
PYTHON = ".python"  # in the folder of code: that of its environment


def root(given: str) -> str:
    """Returns the folder of all that is kept here; ~ is the home of the user on this host."""
    return os.path.abspath(os.path.expanduser(given))


def job_folder(given: str, name: str) -> str:
    """Returns this host's folder of a job; may have to be made.

    It has the host's name, as several hosts may have their homes on one disk.
    """
    return os.path.join(root(given), "jobs", name, socket.gethostname())


def log_path(folder: str, attempt: str) -> str:
    """Returns the file of what an attempt's processes say."""
    return os.path.join(folder, f"{attempt}.log")


def write_json(path: str, value: Any) -> None:
    """Writes a file whole or not at all; it is the user's alone."""
    handle, part = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".part-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def read_json(path: str) -> dict[str, Any]:
    """Returns what a file holds; nothing where it is missing or was cut off."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
