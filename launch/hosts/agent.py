"""A host's part of a job: starts its processes, and keeps a record of how they stand.

``launch/hosts/remote/jobs.py`` starts it, detached from the connection that asked for it: it goes
on when that ends. It begins nothing again by itself, since all hosts have to.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from configs.errors import UserError
from configs.folders import Folder, run_folder
from launch.group import Group, Share, Start
from launch.hosts.remote import places
from launch.watchdog import Watchdog
from model import manifest

EVERY = 1.0  # seconds between two looks at the processes' signs of life


class Record:
    """The state of a host's part of a job, on its disk."""

    def __init__(self, folder: str, attempt: str, group: Group):
        """Args: the job's folder, the attempt, its processes."""
        self._path, self._group = os.path.join(folder, places.STATE), group
        self._state: dict[str, Any] = dict(attempt=attempt, state="running", pid=os.getpid())
        self._over = threading.Event()

    def write(self, **more: Any) -> None:
        """Writes what is new."""
        state = self._state | dict(pids=self._group.pids) | more
        if state != self._state:
            self._state = state
            try:
                places.write_json(self._path, state)
            except OSError as error:  # a full disk: what it says goes on, and the lock tells all
                print(f"{self._path} cannot be written ({error.strerror})", file=sys.stderr)

    def follow(self, watchdog: Watchdog) -> None:
        """Writes each second how the processes stand, until ``end``."""

        def look() -> None:
            while not self._over.wait(EVERY):
                self.write(step=watchdog.step(), joined=watchdog.joined())

        self._thread = threading.Thread(target=look, name="record", daemon=True)
        self.write()
        self._thread.start()

    def end(self, **how: Any) -> None:
        """Writes how all has ended."""
        self._over.set()
        if hasattr(self, "_thread"):
            self._thread.join()
        self.write(state="ended", ended=time.time(), **how)


def main(folder: str) -> None:
    """Runs the processes of one host.

    Args:
      folder: of the job on this host; standard input has what is to be run.
    """
    request = json.load(sys.stdin)
    share = Share(**request["share"])
    start = Start(request["arguments"], request["environment"], (request["lock"],))
    try:
        workdir = run_folder(request["workdir"], "--workdir") if request["workdir"] else None
    except UserError:  # which training itself says
        workdir = None
    group = Group(share, start, request["stall"], workdir)
    record = Record(folder, request["attempt"], group)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, group.forward)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    record.write(step=-1, joined=False)
    ending = group.run(record.follow)
    record.end(
        status=ending.status,
        reason=ending.reason,
        step=ending.step,
        stacks=ending.stacks,
        saved=_newest_step(workdir),
    )


def _newest_step(workdir: Folder | None) -> int:
    try:
        return max(manifest.whole_steps(workdir), default=0) if workdir else 0
    except UserError:  # a store that does not answer
        return 0


if __name__ == "__main__":
    main(sys.argv[1])
