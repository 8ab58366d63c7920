"""Looks at a host for what keeps a run from starting there; changes nothing."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from typing import Any

from launch.hosts.remote import jobs, places, wire

LOOKING = 30.0  # seconds for what the packages say of themselves and of the devices
CONNECTING = 5.0  # seconds for a connection to the coordinator
_PIECE = 4 << 20  # bytes that are written to see whether a disk takes them
_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")
# What a launcher, an engine or a person may have left, by which JAX would wait for others.
_VARIABLES = re.compile(
    r"(JAX_(COORDINATOR|NUM_PROC|PROCESS_ID|LOCAL_DEVICE|PLATFORMS).*|MEGASCALE_.*|XLA_FLAGS"
    r"|TPU_(PROCESS|VISIBLE|CHIPS|HOST|WORKER|SKIP).*|CLOUD_TPU_TASK_ID|LIBTPU_INIT_ARGS"
    r"|(CUDA|ROCR|HIP)_VISIBLE_DEVICES)"
)


def main() -> None:
    """Answers requests until the launcher goes: first what is found here, then of the network."""
    kept: list[socket.socket] = []
    while True:
        try:
            request = wire.receive()
        except EOFError:
            return
        act = request.pop("act")
        if act == "look":
            wire.send(found=look(request))
        elif act == "time":
            wire.send(found=dict(time=time.time()))
        elif act == "listen":
            wire.send(found=listen(request["port"], kept))
        elif act == "connect":
            wire.send(found=connect(request["address"], request["port"]))


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what is found on this host.

    Args:
      request: ``root``, ``name``: of the job; ``code``: its digest; ``checkout``: a folder in place
        of that, or empty; ``files``: digests of the files it should have; ``interpreter``: or
        empty; ``workdir``; ``arguments``: of training, or none; ``environment``: of the job;
        ``devices``: whether to ask JAX for them, which takes them for a moment.
    """
    root = places.root(request["root"])
    code = request["checkout"] and os.path.expanduser(request["checkout"])
    code = code or os.path.join(root, "code", request["code"])
    given = os.path.expanduser(request["interpreter"])
    python = (given or _text(os.path.join(code, places.PYTHON))) if os.path.isdir(code) else ""
    state = jobs.current(places.job_folder(root, request["name"])) if request["name"] else {}
    ours = {state.get("pid"), *state.get("pids", [])}
    runs = state.get("state") == "running"
    busy = _busy(ours)
    known = dict(request, devices=request["devices"] and not runs and not busy)
    return dict(
        host=socket.gethostname(),
        address=_own_address(),
        job=dict(state=state.get("state"), joined=state.get("joined"), step=state.get("step")),
        code=_code(code, request["files"]),
        packages=_packages(python, code, known) if python else None,
        disk=_disk(request["workdir"], root),
        kept=_disk("", root),
        busy=busy,
        # Only of those, and none of --env: a value of any other may be a secret.
        variables={n: value for n, value in os.environ.items() if _VARIABLES.fullmatch(n)},
    )


def listen(port: int, kept: list[socket.socket]) -> dict[str, Any]:
    """Listens at a port of this host, so that others can try to reach it.

    Args:
      port: of the coordinator.
      kept: takes the socket, which is open as long as this program runs.
    """
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=100)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return dict(taken=_listener(port))
        return dict(error=error.strerror or str(error))
    kept.append(server)
    return {}


def connect(address: str, port: int) -> dict[str, Any]:
    """Tries to reach a port of another host."""
    try:
        socket.create_connection((address, port), timeout=CONNECTING).close()
    except TimeoutError:
        return dict(error="it does not answer")
    except OSError as error:
        return dict(error=error.strerror or str(error))
    return {}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _own_address() -> dict[str, Any]:
    """Returns what this host's own name stands for, by which CPUs find each other."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        return dict(error=error.strerror or str(error))
    return dict(address=str(found[0][4][0]).partition("%")[0])


def _code(folder: str, files: dict[str, str]) -> dict[str, Any]:
    """Returns which files of the code are others than they should be, and its revision."""
    if not os.path.isdir(folder):
        return dict(folder=folder, there=False)
    differing = []
    for name, digest in files.items():
        try:
            with open(os.path.join(folder, name), "rb") as file:
                same = hashlib.sha256(file.read()).hexdigest() == digest
        except OSError:
            same = False
        if not same:
            differing.append(name)
    recorded = places.read_json(os.path.join(folder, "code.json")).get("revision")
    revision = _said(["git", "-C", folder, "rev-parse", "HEAD"]) or recorded
    return dict(folder=folder, there=True, differing=differing, revision=revision)


def _packages(python: str, code: str, request: dict[str, Any]) -> dict[str, Any]:
    """Returns what the environment of the job says of itself and of the devices."""
    kept = {name: request[name] for name in ("arguments", "workdir", "devices")}
    try:
        done = subprocess.run(
            [python, "-m", "launch.hosts.facts"],
            input=json.dumps(kept),
            cwd=code,
            env={**os.environ, **request["environment"], "PYTHONPATH": code},
            capture_output=True,
            text=True,
            timeout=LOOKING,
            check=False,
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return found if isinstance(found, dict) else {}
    except subprocess.TimeoutExpired:
        return dict(error=f"no answer in {LOOKING:.0f} s", slow=True)
    except OSError as error:
        return dict(error=f"{python}: {error.strerror}")
    except (ValueError, IndexError):
        return dict(error=(done.stderr.strip().splitlines() or ["no answer"])[-1])


def _disk(workdir: str, root: str) -> dict[str, Any]:
    """Returns the room of the disk of a run's folder, and why it takes no file, if it does not."""
    if "://" in workdir:  # the environment's packages try that
        workdir = ""
    folder = os.path.abspath(os.path.expanduser(workdir)) if workdir else root
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        if os.path.lexists(folder):
            return dict(folder=folder, error=os.strerror(errno.ENOTDIR))
        folder = os.path.dirname(folder)
    found: dict[str, Any] = dict(folder=folder)
    try:
        about = os.statvfs(folder)
        found.update(free=about.f_bavail * about.f_frsize, total=about.f_blocks * about.f_frsize)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * _PIECE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        found.update(error=error.strerror or str(error))
    return found


def _busy(ours: set[Any]) -> list[dict[str, Any]]:
    """Returns the processes that have an accelerator of this host open, but for ours."""
    devices = {path for pattern in _DEVICES for path in glob.glob(pattern)}
    found = []
    for folder in glob.glob("/proc/[0-9]*/fd") if devices else []:
        pid = int(folder.split("/")[2])
        if pid not in ours and (taken := sorted(devices & _opened(folder))):
            found.append(dict(pid=pid, devices=taken, command=_command(pid)))
    return found


def _listener(port: int) -> str:
    """Returns which process listens at a port, as half a sentence; empty where it is hidden."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _text(table).splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{words[9]}]")
    for folder in glob.glob("/proc/[0-9]*/fd"):
        if inodes & _opened(folder):
            pid = int(folder.split("/")[2])
            return f"process {pid} ({_command(pid)})"
    return ""


def _opened(folder: str) -> set[str]:
    """Returns what a process has open; nothing where it has ended, or is another user's."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):  # closed meanwhile
                found.add(os.readlink(os.path.join(folder, name)))
    return found


def _command(pid: int) -> str:
    """Returns the first words of a process: others may hold secrets."""
    words = _text(f"/proc/{pid}/cmdline").split("\0")
    return " ".join(words[:3])[:100]


def _said(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
