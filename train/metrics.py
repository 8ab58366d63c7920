"""The run's record: metrics.jsonl always, TensorBoard beside it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from configs.errors import UserError
from configs.files import write_text

NAME = "metrics.jsonl"


class Metrics:
    """Appends a row a logged step; rows past the step that a run goes on from are dropped."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        """Args: the run's folder, the step it starts from, whether to write TensorBoard events.

        Raises:
          UserError: one of them cannot be written.
        """
        path, events = workdir / NAME, workdir / "tensorboard"
        try:
            if tensorboard:
                events.mkdir(exist_ok=True)
            if path.is_file():
                kept = [row for row in read(workdir) if row["step"] <= step]
                write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be written ({error.strerror}); move what is there away, "
                "or name another workdir."
            ) from error
        self._board = SummaryWriter(str(events), purge_step=step + 1, write_to_disk=tensorboard)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row; ``step`` counts the steps taken, and what is not finite becomes null.

        Raises:
          UserError: the disk is full.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row = dict(step=step, **dict.fromkeys(values) | finite)
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name} cannot be written ({error.strerror}); what was saved before is "
                "whole: free space and start again."
            ) from error
        for name, value in finite.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Returns when the rows are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the record."""
        self._file.close()
        self._board.close()


class Unwritten(Metrics):
    """The record of a process that writes none."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes nothing."""

    def sync(self) -> None:
        """Returns at once."""

    def close(self) -> None:
        """Ends nothing."""


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run, one a step; a line that was cut off is left out.

    An evaluation has a line of its own, after the one of the training step that it measured.
    """
    path = workdir / NAME
    if not path.is_file():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.setdefault(row["step"], {}).update(row)
    return list(rows.values())
