"""The newest rows of a run's record, of which each look reads only what is new."""

import collections
import dataclasses
import re
import statistics

from configs.folders import Folder
from configs.parts import Version, part
from launch.status import loose

# Bytes from the end that are read at first; more, up to the second, until an evaluation is in them.
FIRST, MOST = 1 << 18, 1 << 23
KEPT = 50  # training rows, of which rates are the median
_EVALUATION = b'"eval/loss"'


@dataclasses.dataclass(frozen=True)
class Row:
    """What is shown of a row of training."""

    step: int
    loss: float | None  # nats a token; None: not finite
    tokens_per_second: float | None
    host_seconds: dict[int, float]  # by process, of a step, but for waiting for devices


class Rows:
    """The last rows of one metrics.jsonl.

    Attributes:
      newest: rows of training, oldest first.
      held_out: the loss of the last evaluation in what was read, nats a token.
    """

    def __init__(self, path: Folder):
        """Args: the file."""
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self.newest: collections.deque[Row] = collections.deque(maxlen=KEPT)
        self.held_out: float | None = None
        self._version: Version | None = None
        self._read, self._rest = 0, b""  # bytes read; the line that they end in

    def look(self, version: Version | None) -> None:
        """Reads what is new.

        Args:
          version: of the file as it is now; None where there is none.

        Raises:
          UserError: it cannot be read.
        """
        if version is None:
            self._forget()
        elif self._version is None or self._is_another(version):
            self._forget()
            self._begin(version.size)
        elif version != self._version:
            data = part(self._path, self._read, version.size)
            self._read += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._take(lines)
        self._version = version

    def _is_another(self, version: Version) -> bool:
        """Tells whether a file is not the one of before with more lines, or with too many."""
        assert self._version is not None
        new = version.size - self._read
        return version.made != self._version.made or not 0 <= new <= MOST

    def _begin(self, size: int) -> None:
        length = FIRST
        while True:
            start = max(0, size - length)
            data = part(self._path, start, size)
            if start == 0 or length >= MOST or _EVALUATION in data:
                break
            length *= 8
        self._read = start + len(data)
        *lines, self._rest = data.split(b"\n")
        self._take(lines[1:] if start else lines)

    def _take(self, lines: list[bytes]) -> None:
        """Takes the lines that count, from the last on: there may be many."""
        found: list[Row] = []
        held_out: float | None = None
        for line in reversed(lines):
            measures = held_out is None and _EVALUATION in line
            if len(found) == KEPT and not measures:
                continue
            values = loose.document(line) or {}
            step = loose.whole(values.get("step"))
            if step is None:
                continue
            if measures:
                held_out = loose.number(values.get("eval/loss"))
            if "loss" in values and len(found) < KEPT:
                found.append(
                    Row(
                        step,
                        loose.number(values["loss"]),
                        loose.number(values.get("tokens_per_second")),
                        _host_seconds(values),
                    )
                )
        self.newest.extend(reversed(found))
        self.held_out = self.held_out if held_out is None else held_out

    def tokens_per_second(self) -> float | None:
        """Returns the median rate of the rows; None where none is known."""
        rates = [row.tokens_per_second for row in self.newest if row.tokens_per_second]
        return statistics.median(rates) if rates else None

    def loss(self) -> float | None:
        """Returns the last loss that is a number."""
        return next((row.loss for row in reversed(self.newest) if row.loss is not None), None)

    def step(self) -> int | None:
        """Returns the step of the last row."""
        return self.newest[-1].step if self.newest else None

    def host_seconds(self) -> dict[int, float]:
        """Returns the median seconds of a step of each process' host, of those in the last row."""
        last = self.newest[-1].host_seconds if self.newest else {}
        return {
            index: statistics.median(
                row.host_seconds[index] for row in self.newest if index in row.host_seconds
            )
            for index in last
        }


def _host_seconds(values: dict[str, object]) -> dict[int, float]:
    found = {}
    for name, value in values.items():
        matched, seconds = re.fullmatch(r"host_seconds/([0-9]{1,9})", name), loose.number(value)
        if matched and seconds is not None and seconds >= 0:
            found[int(matched[1])] = seconds
    return found
