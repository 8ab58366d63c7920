"""Packs what a run has written, for the launcher to keep: all but its saved steps, or all."""

from __future__ import annotations

import os
import tarfile
from typing import Any

from launch.hosts.remote import places, wire

_STEPS = ("checkpoints", "tensorboard", "profile")  # large; left out unless asked for


def act(request: dict[str, Any]) -> dict[str, Any]:
    """Sends a tar of a folder of this host.

    Args:
      request: ``root``: what a relative folder lies in; ``folder``; ``all``: with saved steps.

    Returns:
      ``files``: how many.
    """
    folder = os.path.join(places.root(request["root"]), os.path.expanduser(request["folder"]))
    if not os.path.isdir(folder):
        return dict(files=0)
    names = []
    for place, folders, files in os.walk(folder):
        if not request["all"] and place == folder:
            folders[:] = [name for name in folders if name not in _STEPS]
        paths = [os.path.join(place, name) for name in files]
        names += [os.path.relpath(path, folder) for path in paths if not os.path.islink(path)]
    with tarfile.open(fileobj=_Sent(), mode="w|gz") as packed:  # type: ignore[call-overload]
        for name in sorted(names):
            try:
                packed.add(os.path.join(folder, name), arcname=name, recursive=False)
            except FileNotFoundError:  # replaced meanwhile
                continue
    return dict(files=len(names))


class _Sent:
    """A file that is sent as it is written."""

    def write(self, data: bytes) -> int:
        wire.send_bytes(data)
        return len(data)


def main() -> None:
    """Answers one request."""
    wire.answer(act)
