"""Refuses processes that do not do the same: another config, another text, another folder."""

import secrets
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError
from configs.files import write_text
from train.processes.group import Processes

OWN = ("data.path", "data.cache_dir")  # a host may have the same text elsewhere
PATIENCE = 30.0  # seconds; a network disk may show what another host wrote only then


def check_shared(workdir: Path, processes: Processes) -> None:
    """Makes the folder, and checks that every process sees there what process 0 writes.

    Raises:
      UserError: one does not, or the folder cannot be made.
    """
    if processes.count == 1:
        return

    def write() -> str:
        path = workdir / f".shared-{secrets.token_hex(8)}"
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--workdir={workdir} cannot be made ({error.strerror}); name another folder."
            ) from error
        write_text(path, "all processes of a run must see this file\n")
        return path.name

    name = processes.told(write)

    try:
        processes.together(lambda: wait_for(workdir / name))
    finally:
        if processes.first:
            (workdir / name).unlink(missing_ok=True)


def check_flags(processes: Processes, given: dict[str, Any]) -> None:
    """Checks that every process was given the flags of process 0, whose values are JSON's.

    Raises:
      UserError: one was given others.
    """
    if processes.count == 1:
        return
    first = processes.told(lambda: given)

    def compare() -> None:
        for name, value in given.items():
            if value != first[name]:
                raise UserError(
                    f"--{name} is {value!r} here and {first[name]!r} for process 0; start alike."
                )

    processes.together(compare)


def check_alike(processes: Processes, config: ConfigDict, digest: str) -> None:
    """Checks that every process has the config, the text and the JAX of process 0.

    Args:
      processes: of the run.
      config: resolved.
      digest: of the text and its tokens.

    Raises:
      UserError: one has others.
    """
    if processes.count == 1:
        return
    text, first, version = processes.told(
        lambda: [resolved.to_json(config), digest, jax.__version__]
    )

    def compare() -> None:
        changed = resolved.difference(resolved.from_json(text, "process 0"), config)
        pairs = [(f"config.{name}", *pair) for name, pair in changed.items() if name not in OWN]
        pairs += [("the text's digest", first, digest), ("jax", version, jax.__version__)]
        for name, old, new in pairs:
            if old != new:
                raise UserError(f"{name} is {new!r} here and {old!r} for process 0; start alike.")

    processes.together(compare)


def wait_for(path: str | Path) -> Path:
    """Returns the path of what process 0 has written, when it is seen here too.

    Raises:
      UserError: it is not seen in time.
    """
    until = time.monotonic() + PATIENCE
    while not Path(path).exists():
        if time.monotonic() > until:
            raise UserError(
                f"{path}, which process 0 has, is not seen here; name a --workdir on a disk that "
                "all hosts share, such as NFS, Filestore or Cloud Storage FUSE."
            )
        time.sleep(0.2)
    return Path(path)
