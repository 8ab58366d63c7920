"""Interleaved rounds: each contender runs once a round, in a process of its own."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What this project's contenders are called, perhaps with more behind it.
OWN = "manyheads"

# Figures that a contender's last answer adds to its row.
KEPT = ("peak_bytes", "libraries_bytes", "loss", "backend")


class Contender:
    """A contender in a process that waits between its runs."""

    def __init__(self, name: str, **settings: object):
        """Starts it.

        Args:
          name: "module:Class", under ``bench.contenders``.
          settings: arguments of the class.
        """
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = ["-m", "bench.worker", f"bench.contenders.{name}", json.dumps(settings)]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        self.name = name
        self.answers: list[dict] = []
        self._answer()

    def run(self, repetitions: int) -> dict:
        """Returns what the contender measured: ``seconds`` of one, ``peak_bytes``, and its own."""
        self._to.write(f"{repetitions}\n")
        self._to.flush()
        answer = self._answer()
        answer["seconds"] /= repetitions
        self.answers.append(answer)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._to.close()
        self.process.wait()
        self._from.close()
        self.errors.close()

    def _answer(self) -> dict:
        line = self._from.readline()
        if not line:
            self.errors.seek(0)
            said = self.errors.read()[-4000:]
            self.close()
            raise RuntimeError(f"{self.name} ended:\n{said}")
        return json.loads(line)


def interleave(contenders: Mapping[str, Contender], rounds: int, repetitions: int) -> None:
    """Lets each contender run in each round, after one round that does not count."""
    for contender in contenders.values():
        contender.run(repetitions)
        contender.answers.clear()
    for i in range(rounds):
        order = list(contenders.values())
        # Whoever follows another finds its traces in the caches: none always goes first.
        for contender in order[i % len(order) :] + order[: i % len(order)]:
            contender.run(repetitions)


def summary(contenders: Mapping[str, Contender]) -> list[dict]:
    """Closes the contenders and returns a row of figures for each.

    The fastest of this project's is compared with the fastest of the others, round by round:
    ``ratio`` says how many times as fast it is.
    """
    seconds = {name: [a["seconds"] for a in c.answers] for name, c in contenders.items()}
    own = [name for name in contenders if name.startswith(OWN)]
    others = [name for name in contenders if name not in own]

    def fastest(names: list[str]) -> str:
        return min(names, key=lambda name: statistics.median(seconds[name]))

    rows = []
    for name, contender in contenders.items():
        last = contender.answers[-1]
        row = dict(
            contender=name,
            seconds=statistics.median(seconds[name]),
            lowest=min(seconds[name]),
            highest=max(seconds[name]),
            **{key: last[key] for key in KEPT if key in last},
        )
        if own and others and name == fastest(own):
            row["ratio"] = ratio(seconds[name], seconds[fastest(others)])
        rows.append(row)
        contender.close()
    return rows


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Returns the median, lowest and highest ratio ``theirs / ours`` over the rounds."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return dict(median=statistics.median(ratios), lowest=min(ratios), highest=max(ratios))
