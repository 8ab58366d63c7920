"""Starts a host's part of a job, and ends it: one agent a job, which lives as long as its lock.

The lock is inherited by all processes of the job, so that it is free only when all have ended,
whatever became of the agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from typing import Any

from launch.hosts.remote import places, wire

ASKING, KILLING = 20.0, 10.0  # seconds in which what ran before ends, when asked and when killed


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Starts the agent of a job, when all hosts are ready to.

    What an earlier attempt has left is ended first. The launcher is told ``ready``; when it says
    ``go`` the agent is started, and when it goes away instead nothing is.

    Args:
      request: ``root``, ``name``, ``code``, ``python``; ``job``: for the record; ``known``: the
        latest attempt that the launcher knows of, or an empty text; ``attempt``: a
        text that is greater than that of every attempt before; ``agent``: what the agent is
        told, values of the environment among it, which are written nowhere.

    Returns:
      ``pid``: of the agent.
    """
    folder = places.job_folder(request["root"], request["name"])
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, places.LOCK), "a", encoding="utf-8") as lock:
        _take(lock.fileno(), folder, request["known"])
        wire.send(ready=True)
        if not wire.receive().get("go"):
            raise EOFError
        places.write_json(os.path.join(folder, places.JOB), request["job"])
        state = dict(attempt=request["attempt"], state="running", pid=0, step=-1)
        places.write_json(os.path.join(folder, places.STATE), state)
        with open(places.log_path(folder, request["attempt"]), "ab") as log:
            agent = subprocess.Popen(
                [request["python"], "-m", "launch.hosts.agent", folder],
                cwd=request["cwd"],
                env=dict(os.environ, PYTHONPATH=request["code"], PYTHONUNBUFFERED="1"),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        # Before it is told what to do: from here on it can be stopped.
        places.write_json(os.path.join(folder, places.STATE), dict(state, pid=agent.pid))
        told = dict(request["agent"], lock=lock.fileno(), attempt=request["attempt"])
        assert agent.stdin is not None
        with contextlib.suppress(OSError), agent.stdin:  # one that has ended says why in its log
            agent.stdin.write(json.dumps(told).encode())
    return dict(pid=agent.pid)


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """Asks a job of this host to end, or kills it.

    Args:
      request: ``root``, ``name``; ``kill``: at once; ``wanted``: whether a person asks, who does
        not want it started again, rather than a launcher that ends an attempt.

    Returns:
      ``ran``: whether there was anything to end.
    """
    folder = places.job_folder(request["root"], request["name"])
    if not is_held(folder):
        return dict(ran=False)
    if request["wanted"]:
        state = places.read_json(os.path.join(folder, places.STATE))
        wanted = dict(attempt=state.get("attempt"))
        places.write_json(os.path.join(folder, places.WANTED), wanted)
    signal_all(folder, signal.SIGKILL if request["kill"] else signal.SIGTERM)
    return dict(ran=True)


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the jobs of this host by name, or the one that is named: its state and record."""
    names = [request["name"]] if request.get("name") else []
    if not names:
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(os.path.join(places.root(request["root"]), "jobs")))
    found = {}
    for name in names:
        folder = places.job_folder(request["root"], name)
        state = current(folder)
        if state:
            job = places.read_json(os.path.join(folder, places.JOB))
            found[name] = dict(state=state, job=job)
    return dict(jobs=found)


def current(folder: str) -> dict[str, Any]:
    """Returns the state of a job: one whose agent was killed has ended; empty where none is."""
    held = is_held(folder)  # first: what ends in between has written its end
    state = places.read_json(os.path.join(folder, places.STATE))
    if state.get("state") == "running" and not held:
        said = "its agent was killed on the host"
        state = dict(state, state="ended", status=128 + signal.SIGKILL, reason=said)
    if state.get("state") == "ended":
        wanted = places.read_json(os.path.join(folder, places.WANTED))
        state["wanted"] = bool(wanted) and wanted.get("attempt") == state.get("attempt")
    return state


def is_held(folder: str) -> bool:
    """Tells whether a process of a job lives."""
    try:
        with open(os.path.join(folder, places.LOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def signal_all(folder: str, number: int) -> None:
    """Sends a signal to the agent of a job; what is to be killed is so with all processes."""
    state = places.read_json(os.path.join(folder, places.STATE))
    pids = [state.get("pid")]
    if number == signal.SIGKILL:
        pids += state.get("pids", [])
    for pid in pids:
        # Only what holds the lock: a number may have been given to another process since.
        if isinstance(pid, int) and pid > 0 and _holds(pid, os.path.join(folder, places.LOCK)):
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def _holds(pid: int, path: str) -> bool:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        about = os.stat(path)
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(os.path.join(folder, name)), about):
                    return True
    return False


def _take(lock: int, folder: str, known: str) -> None:
    """Takes the lock; ends what has it, but for an attempt that another launcher has begun."""
    for number, patience in ((signal.SIGTERM, ASKING), (signal.SIGKILL, KILLING), (0, 0.0)):
        until = time.monotonic() + patience
        if number and is_held(folder):
            signal_all(folder, number)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if places.read_json(os.path.join(folder, places.STATE)).get("attempt", "") > known:
                    raise wire.Refused(
                        "another launcher has started the job meanwhile; run the same command "
                        "again to follow it."
                    ) from None
                if time.monotonic() >= until:
                    break
            time.sleep(0.1)
    state = places.read_json(os.path.join(folder, places.STATE))
    raise wire.Refused(
        f"processes of an earlier attempt do not end there (process {state.get('pid')} and those "
        "that it started); kill them and run again."
    )


def main() -> None:
    """Answers one request."""
    wire.answer(lambda request: globals()[request["action"]](request))
