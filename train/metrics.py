"""The run's record: metrics.jsonl always, TensorBoard beside it."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from configs.errors import UserError, disk_reason
from configs.files import copy, is_file, names, read_text
from configs.folders import Folder, in_store
from train.journal import journal

NAME = "metrics.jsonl"
BOARD = "tensorboard"


class Metrics:
    """Appends a row a logged step; rows past the step that a run goes on from are dropped."""

    def __init__(self, workdir: Folder, step: int, tensorboard: bool):
        """Args: the run's folder, the step it starts from, whether to write TensorBoard events.

        Raises:
          UserError: one of them cannot be written.
        """
        self._workdir, self._tensorboard = workdir, tensorboard
        kept = [row for row in read(workdir) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        # TensorBoard appends, which an object store cannot: there its files are copied.
        self._events = workdir / BOARD if isinstance(workdir, Path) else _local_folder()
        try:
            if tensorboard:
                self._events.mkdir(exist_ok=True)
            self._file = journal(workdir / NAME, text)
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be written ({error.strerror}); move what is there away, "
                "or name another workdir."
            ) from error
        self._board = SummaryWriter(
            str(self._events), purge_step=step + 1, write_to_disk=tensorboard
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row; ``step`` counts the steps taken, and what is not finite becomes null.

        Raises:
          UserError: the disk is full.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row = dict(step=step, **dict.fromkeys(values) | finite)
        self._file.append(json.dumps(row) + "\n")
        for name, value in finite.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Returns when the rows are stored."""
        self._file.sync()
        if self._tensorboard and in_store(self._workdir):
            self._board.flush()
            copy(self._events, self._workdir / BOARD)

    def close(self) -> None:
        """Ends the record.

        Raises:
          UserError: what TensorBoard is to show cannot be written.
        """
        self._file.close()
        try:
            self._board.close()
        except OSError as error:
            raise UserError(
                f"{self._events} cannot be written ({disk_reason(error)}); free space, or set "
                "log.tensorboard=False."
            ) from error
        if in_store(self._workdir):
            self.sync()
            shutil.rmtree(self._events, ignore_errors=True)


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


def read(workdir: Folder) -> list[dict[str, Any]]:
    """Returns the rows of a run, one a step; a line that was cut off is left out.

    An evaluation has a line of its own, after the one of the training step that it measured.
    """
    if NAME not in names(workdir):
        return []
    path = workdir / NAME
    if isinstance(path, Path):
        text = path.read_text(encoding="utf-8", errors="replace") if is_file(path) else ""
    else:
        text = read_text(path)
    rows: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.setdefault(row["step"], {}).update(row)
    return list(rows.values())


def _local_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="manyheads-tensorboard-"))
