"""Brings the code of a job to a host, and makes the environment that it runs in."""

from __future__ import annotations

import configparser
import fcntl
import glob
import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any

from launch.hosts.remote import places, wire

WHOLE = ".whole"  # the mark of a folder that was made to its end
OLDEST = (3, 11)  # python of an environment
_PYTHONS = ("python3.11", "python3", "python3.12", "python3.13", "python3.14")
_TOLD = 30  # lines of what failed that are told


def act(request: dict[str, Any]) -> dict[str, Any]:
    """Makes code and environment where they are not there.

    Args:
      request: ``root``; ``code``: digest of the code; ``interpreter``: a python that has all
        packages, or empty; ``python``: what to make an environment of, or empty; ``extras``: of
        setup.cfg; ``auto``: whether to add the one of this host's devices.

    Returns:
      ``code``: its folder; ``python``; ``made``: what was not there.
    """
    made = []
    root = places.root(request["root"])
    code = os.path.join(root, "code", request["code"])
    if not os.path.exists(os.path.join(code, WHOLE)):
        wire.send(need="code")
        _unpack(wire.receive_bytes(wire.receive()["bytes"]), code)
        made.append("code")
    wire.end_with_launcher(_kill_children)
    if request["interpreter"]:
        python, new = _given(request["interpreter"]), False
    else:
        extras = sorted({*request["extras"], *(_of_devices() if request["auto"] else [])})
        python, new = _environment(root, code, request["python"], extras)
    with open(os.path.join(code, places.PYTHON), "w", encoding="utf-8") as file:
        file.write(python)
    return dict(code=code, python=python, made=made + ["environment"] * new)


def _unpack(archive: bytes, code: str) -> None:
    os.makedirs(os.path.dirname(code), exist_ok=True)
    part = tempfile.mkdtemp(dir=os.path.dirname(code), prefix=".part-")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
            # The launcher's own, links to anywhere among it.
            trusted = dict(filter="fully_trusted") if hasattr(tarfile, "data_filter") else {}
            packed.extractall(part, **trusted)  # type: ignore[arg-type]
        os.chmod(part, 0o755)
        with open(os.path.join(part, WHOLE), "w", encoding="utf-8"):
            pass
        try:
            os.rename(part, code)
        except OSError:  # another host's, on a disk that both share
            if not os.path.exists(os.path.join(code, WHOLE)):
                shutil.rmtree(code, ignore_errors=True)  # of one that was cut off
                os.rename(part, code)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _given(interpreter: str) -> str:
    path = os.path.expanduser(interpreter)
    try:
        done = subprocess.run(
            [path, "-c", "import jax, flax, optax, orbax.checkpoint"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise wire.Refused(
            f"--interpreter={interpreter} cannot be run ({error.strerror}); name a python that has "
            "the packages of requirements.lock, or leave it out."
        ) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise wire.Refused(
            f"--interpreter={interpreter} lacks packages ({said}); install requirements.lock there,"
            " or leave it out."
        )
    return path


def _of_devices() -> list[str]:
    if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
        return ["tpu"]
    return ["cuda"] if glob.glob("/dev/nvidia[0-9]*") else []


def _environment(root: str, code: str, given: str, extras: list[str]) -> tuple[str, bool]:
    """Returns the python of an environment with the packages of the lock; makes it once."""
    base, version = _python(given)
    with open(os.path.join(code, "requirements.lock"), encoding="utf-8") as file:
        lock = file.read()
    wanted = "\n".join([lock, *requirements(code, extras), version, platform.machine()])
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    folder = os.path.join(root, "environments", digest)
    python = os.path.join(folder, "bin", "python")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another run may be making it
        if os.path.exists(os.path.join(folder, WHOLE)):
            return python, False
        wire.send(say=f"makes an environment with {version} in {folder}")
        for words in set_up(base, folder, code, requirements(code, extras)):
            _run(words, held.fileno())
        with open(os.path.join(folder, WHOLE), "w", encoding="utf-8"):
            pass
    return python, True


def set_up(base: str, folder: str, code: str, wanted: Sequence[str]) -> list[list[str]]:
    """Returns the commands that make an environment.

    Args:
      base: the python that it is made of.
      folder: of the environment.
      code: folder of the code, which has the lock.
      wanted: what is installed beyond the lock, at its versions.
    """
    locked = os.path.join(code, "requirements.lock")
    python = os.path.join(folder, "bin", "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    more = [[*pip, "-c", locked, *wanted]] if wanted else []
    return [[base, "-m", "venv", "--clear", folder], [*pip, "-r", locked], *more]


def requirements(code: str, extras: Sequence[str]) -> list[str]:
    """Returns what extras of setup.cfg ask for."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(os.path.join(code, "setup.cfg"), encoding="utf-8")
    lines = [settings["options.extras_require"][name].split("\n") for name in extras]
    return [line.strip() for group in lines for line in group if line.strip()]


def _python(given: str) -> tuple[str, str]:
    """Returns a python that is new enough, and which it is."""
    known = [given] if given else _PYTHONS
    ask = "import sys; print(*sys.version_info[:3], sys.executable)"
    found = "none"
    for name in known:
        path = shutil.which(os.path.expanduser(name))
        if path is None:
            continue
        done = subprocess.run(
            [path, "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            continue
        major, minor, micro = map(int, done.stdout.split()[:3])
        found = f"Python {major}.{minor}.{micro}"
        if (major, minor) >= OLDEST:
            return path, found
    needed = ".".join(map(str, OLDEST))
    raise wire.Refused(
        f"it has no Python {needed} or newer ({found} was found); install one, or name it by "
        "--python."
    )


def _run(words: list[str], lock: int) -> None:
    """Runs a command, and has it end with the launcher."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=[lock],  # it is held as long as this writes
    )
    _children.append(process.pid)
    assert process.stdout is not None
    lines = [line.rstrip("\n") for line in process.stdout]
    _children.pop()
    if process.wait():
        for line in lines[-_TOLD:]:
            wire.send(say=line)
        raise wire.Stumbled(
            f"its environment could not be made ({os.path.basename(words[0])} {words[2]} failed, "
            "see above); put that right and run again."
        )


_children: list[int] = []


def _kill_children() -> None:
    for pid in _children:
        wire.kill_group(pid)


def main() -> None:
    """Answers one request."""
    wire.answer(act)
