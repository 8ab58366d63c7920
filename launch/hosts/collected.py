"""What a run has written on its first host, brought here."""

import tarfile
import tempfile
from pathlib import Path

from configs.errors import UserError
from launch.hosts.call import Call
from launch.hosts.host import Host
from launch.hosts.plan import Plan

KINDS = ("record", "all", "none")
_ANSWER = 120.0  # seconds for each piece


def collect(host: Host, plan: Plan, folder: Path, kind: str) -> int:
    """Copies a run's folder from a host over what is in a folder here.

    Args:
      host: where process 0 ran.
      plan: of the job.
      folder: here; made if there is anything.
      kind: ``record``: without saved steps, TensorBoard and traces; ``all``; ``none``.

    Returns:
      How many files came.

    Raises:
      UserError: they cannot be written here, or read there.
      Unreachable: the host has gone.
    """
    if kind == "none" or "://" in plan.job.workdir:  # a store can be read from anywhere
        return 0
    request = dict(root=plan.root, folder=plan.job.workdir, all=kind == "all")
    try:
        with Call(host, "collect", **request) as call, tempfile.TemporaryFile() as packed:
            files = 0
            for message in call.messages(_ANSWER):
                if "data" in message:
                    packed.write(message["data"])
                else:
                    files = message["done"]["files"]
            if files:
                packed.seek(0)
                folder.mkdir(parents=True, exist_ok=True)
                with tarfile.open(fileobj=packed, mode="r:gz") as tar:
                    tar.extractall(folder, filter="data")
            return files
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); free space, name another --logs, or "
            "give --collect=none."
        ) from error
