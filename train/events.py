"""The accidents of a run: events.jsonl, a line each, on disk before the run goes on.

A line holds ``step`` (that the bad step would have ended), ``batch`` (its number in the endless
order, from 0), ``kind``, the figures of the step, ``policy``, what was done (``action``) and the
digest of the ``config``; of a rollback also ``to``, the step that the run went back to (0: its
beginning), and ``skipped``, the first and the last of the batches that it leaves out since.
``digest`` is the SHA-256 of the rest, for a line decides which batches a run takes.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.files import is_file, read_text, write_text
from configs.folders import Folder
from model.manifest import digest_of
from train.skipped import Skipped

NAME = "events.jsonl"

Event = dict[str, Any]


def read(workdir: Folder) -> list[Event]:
    """Returns the events of a run, oldest first.

    Raises:
      UserError: a line is damaged, so that it is not known which batches the run leaves out.
    """
    path, found = workdir / NAME, []
    lines = read_text(path).splitlines() if is_file(path) else []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if event.pop("digest") != digest_of(event):
                raise ValueError(line)
            left_out([event])
            found.append({**event, "step": int(event["step"]), "batch": int(event["batch"])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged in line {number}; restore it, or move it away to leave out no "
                "more than the newest saved step does."
            ) from error
    return found


def write(workdir: Folder, events: Iterable[Event]) -> None:
    """Writes all events of a run, and returns when they are on disk.

    Raises:
      UserError: they cannot be written.
    """
    lines = (json.dumps(event | dict(digest=digest_of(event))) + "\n" for event in events)
    write_text(workdir / NAME, "".join(lines))
    if not isinstance(workdir, Path):
        return
    with contextlib.suppress(OSError):  # a network disk may refuse it for a folder
        folder = os.open(workdir, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the file's new name may be lost with the power
        finally:
            os.close(folder)


def left_out(events: Iterable[Event]) -> Skipped:
    """Returns the batches that a run leaves out after these events."""
    return Skipped.of(event["skipped"] for event in events if "skipped" in event)


def plain(value: float) -> float | str:
    """Returns a figure as JSON has it: "nan", "inf" or "-inf" where it is not finite."""
    return value if math.isfinite(value) else str(value)
