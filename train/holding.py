"""One run at a time in a folder: a lock on this machine's disks, a lease in an object store."""

import datetime
import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.errors import UserError
from configs.files import delete, make_folder, names, read_text, write_text
from configs.folders import Folder
from train.alive import HOLDER
from train.processes.group import Processes
from train.processes.whereabouts import here, is_dead
from train.provenance import command

LOCK = ".lock"
# Seconds: between signs of life of a lease, after which it has none, and until a write is settled.
BEAT, DEAD, SETTLED = 10.0, 35.0, 2.0


class Holding:
    """A run's folder, which no other run may have meanwhile."""

    def __init__(self, workdir: Folder, processes: Processes):
        """Args: the folder; the processes of the run, of which 0 holds it."""
        self.workdir, self.processes = workdir, processes
        self._lease: Lease | None = None
        self._lock: FileLock | None = None
        self._inode: int | None = None  # of the lock's file

    def __enter__(self) -> "Holding":
        """Takes the folder; makes it where it is not there.

        Raises:
          UserError: another run has it, or it cannot be made or written.
        """
        self.processes.told(self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives the folder back."""
        if self._lease is not None:
            self._lease.end()
        if self._lock is not None:
            delete(self.workdir / HOLDER)
            self._lock.release()

    def check(self) -> None:
        """Makes sure that the folder is still this run's, in the process that holds it.

        Raises:
          UserError: another run has taken it.
        """
        if self._lease is not None and self._lease.taken:
            raise UserError(f"{_used(self.workdir, self._lease.taken)}; this run ends without it.")
        if self._lock is not None and _inode(self.workdir / LOCK) != self._inode:
            # The lock was deleted under the run, perhaps with the folder: it is taken anew, if no
            # other run has done so.
            self._lock.release(force=True)
            self._lock = None
            self._take()

    def _take(self) -> None:
        make_folder(self.workdir, f"--workdir={self.workdir}")
        if isinstance(self.workdir, Path) and self._locked(self.workdir):
            try:
                write_text(self.workdir / HOLDER, json.dumps(_about()) + "\n")
            except UserError:  # a full disk: the lock alone holds it
                delete(self.workdir / HOLDER)  # of one that was killed
        else:
            self._lease = Lease(self.workdir)
            self._lease.begin()

    def _locked(self, workdir: Path) -> bool:
        """Takes the lock; tells whether the disk knows locks."""
        lock = FileLock(workdir / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{_used(workdir, _holder(workdir))}; wait for its end, stop it, or name another."
            ) from error
        except NotImplementedError:
            return False
        except OSError as error:
            raise UserError(
                f"--workdir={workdir} cannot be written ({error.strerror}); name another folder, "
                "or make this one writable."
            ) from error
        self._lock, self._inode = lock, _inode(workdir / LOCK)
        return True


class Lease:
    """The right to a folder that no lock can guard: kept by signs of life.

    Attributes:
      taken: who has taken it from this run, which gave no sign of life for too long.
    """

    def __init__(self, workdir: Folder):
        """Args: the folder."""
        self.workdir, self.taken = workdir, dict[str, Any]()
        self._about = _about() | dict(id=secrets.token_hex(8), beat=0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def begin(self) -> None:
        """Takes the lease.

        Raises:
          UserError: another run has it.
        """
        before, since = _holder(self.workdir), time.monotonic()
        while before and not is_dead(before) and time.monotonic() < since + DEAD:
            time.sleep(1.0)
            now = _holder(self.workdir)
            if now and now != before:
                raise UserError(
                    f"{_used(self.workdir, now)}; wait for its end, stop it, or name another."
                )
            before = now
        self._write()
        time.sleep(SETTLED)  # of two that write at once, the last one has it
        now = _holder(self.workdir)
        if now.get("id") != self._about["id"]:
            raise UserError(f"{_used(self.workdir, now)}; wait for its end, or name another.")
        self._thread.start()

    def end(self) -> None:
        """Gives it back."""
        self._ended.set()
        self._thread.join()
        if not self.taken:
            delete(self.workdir / HOLDER)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                now = _holder(self.workdir)
                if now and now.get("id") != self._about["id"]:
                    self.taken = now
                    return
                self._about["beat"] += 1
                self._write()
            except UserError:
                continue  # the store does not answer; who comes will wait as long

    def _write(self) -> None:
        write_text(self.workdir / HOLDER, json.dumps(self._about) + "\n")


def _inode(path: Folder) -> int | None:
    """Returns the inode of a file, by which one that was made anew is known; None without one."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _about() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return here() | dict(since=now, command=command())


def _holder(workdir: Folder) -> dict[str, Any]:
    """Returns who has a folder, as far as it can be read."""
    if HOLDER not in names(workdir):
        return {}
    try:
        found = json.loads(read_text(workdir / HOLDER))
    except (ValueError, UserError):
        return {}
    return found if isinstance(found, dict) else {}


def _used(workdir: Folder, holder: dict[str, Any]) -> str:
    if not holder:
        return f"--workdir={workdir} is used by another run"
    given = holder.get("command")
    words = " ".join(map(str, given if isinstance(given, list) else ()))[:200]
    who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    return f"--workdir={workdir} is used by {who} ({words})"
