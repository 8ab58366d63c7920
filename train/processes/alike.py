"""Refuses processes that do not do the same: another config, another text, another folder."""

import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError
from configs.files import delete, make_folder, write_text
from configs.folders import Folder
from train.processes.group import Processes

T = TypeVar("T")

OWN = ("data.path", "data.cache_dir")  # a host may have the same text elsewhere
PATIENCE = 30.0  # seconds; a network disk may show what another host wrote only then


def check_shared(workdir: Folder, processes: Processes) -> None:
    """Makes the folder, and checks that every process sees there what process 0 writes.

    Raises:
      UserError: one does not, or the folder cannot be made.
    """
    if processes.count == 1:
        return

    def write() -> str:
        path = workdir / f".shared-{secrets.token_hex(8)}"
        make_folder(workdir, f"--workdir={workdir}")
        write_text(path, "all processes of a run must see this file\n")
        return path.name

    name = processes.told(write)

    try:
        processes.together(lambda: wait_for(workdir / name))
    finally:
        if processes.first:
            delete(workdir / name)


def check_alike(processes: Processes, values: dict[str, Any]) -> None:
    """Checks that every process has the values of process 0.

    Args:
      processes: of the run.
      values: by the name that a sentence calls them; compared as Python writes them.

    Raises:
      UserError: one has others.
    """
    if processes.count == 1:
        return
    written = {name: repr(value) for name, value in values.items()}
    first = processes.told(lambda: written)

    def compare() -> None:
        for name in sorted({*first, *written}):
            here, there = written.get(name, "missing"), first.get(name, "missing")
            if here != there:
                raise UserError(f"{name} is {here} here and {there} for process 0; start alike.")

    processes.together(compare)


def of_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of a config that all processes of a run must have alike."""
    fields = resolved.values(config)
    return {f"config.{name}": value for name, value in fields.items() if name not in OWN}


def of_flags(*names: str) -> dict[str, Any]:
    """Returns the values of flags, which all processes of a command must have alike."""
    return {f"--{name}": flags.FLAGS[name].value for name in names}


def wait_for(path: Folder) -> Folder:
    """Returns the path of what process 0 has written, when it is seen here too.

    Raises:
      UserError: it is not seen in time.
    """
    if not eventually(path.exists):
        raise UserError(
            f"{path}, which process 0 has, is not seen here; name a --workdir on a disk that "
            "all hosts share, such as NFS, Filestore or Cloud Storage FUSE, or in an object store."
        )
    return path


def eventually(find: Callable[[], T]) -> T:
    """Returns what is found, when something is, or when there is no more hope of it."""
    until = time.monotonic() + PATIENCE
    while not (found := find()) and time.monotonic() < until:
        time.sleep(0.2)
    return found
