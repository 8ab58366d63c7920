"""The run's record: metrics.jsonl always, TensorBoard beside it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from configs.errors import UserError

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
            _drop_rows_past(path, step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be written ({error.strerror}); move what is there away, "
                "or name another workdir."
            ) from error
        self._board = SummaryWriter(str(events), purge_step=step + 1, write_to_disk=tensorboard)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Appends a row; ``step`` counts the steps taken, None is what was not a number.

        Raises:
          UserError: the disk is full.
        """
        values = {n: None if v is None or not math.isfinite(v) else v for n, v in values.items()}
        try:
            self._file.write(json.dumps(dict(step=step, **values)) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name} cannot be written ({error.strerror}); what was saved before is "
                "whole: free space and start again."
            ) from error
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Returns when the rows are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the record."""
        self._file.close()
        self._board.close()


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


def _drop_rows_past(path: Path, step: int) -> None:
    rows = [row for row in read(path.parent) if row["step"] <= step]
    if path.is_file():
        part = path.with_name(NAME + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(part, path)
