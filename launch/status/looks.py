"""Finds the runs of some folders, and looks at them again and again."""

import dataclasses
import time
from collections.abc import Sequence

from configs.errors import UserError
from configs.files import names
from configs.folders import Folder, in_store, run_folder
from launch.status import loose
from launch.status.found import SIGNS, Found, RunFiles
from launch.status.patience import Patience
from launch.status.report import RUNNING, SILENT, Age, Report, judge
from model.manifest import STEPS

DEPTH = 2  # folders of runs within one another, as runs/sweep/RUN is in runs
_RANKS = {RUNNING: 0, SILENT: 1}


@dataclasses.dataclass
class Run:
    """A run that is looked at."""

    name: str  # as it is shown
    files: RunFiles
    age: Age = dataclasses.field(default_factory=Age)
    found: Found | None = None  # at the last look
    report: Report | None = None


class Looks:
    """The runs of some folders."""

    def __init__(self, words: Sequence[str]):
        """Args: folders of runs, or folders that hold some, as they were given.

        Raises:
          UserError: one cannot be named so.
        """
        self._folders: dict[str, Folder] = {
            loose.words(word, 1000): run_folder(word, "WORKDIR") for word in words
        }
        self.in_store = any(in_store(folder) for folder in self._folders.values())
        self._patience = Patience()
        self._runs: dict[str, Run] = {}
        self._of: dict[str, list[str]] = {}  # the runs of a folder, when it was last listed

    def round(self, seconds: float, only: Sequence[str] | None = None) -> list[Report]:
        """Looks once, and returns what is told of each run; those that run come first.

        Args:
          seconds: to wait for disks and stores.
          only: of these runs, by name, is asked; None: of all.
        """
        until = time.monotonic() + seconds
        if only is None:
            self._list(seconds)
        asked = [name for run in self._of.values() for name in run]
        jobs = {
            f"look {name}": self._runs[name].files.look
            for name in asked
            if only is None or name in only
        }
        looked = self._patience.results(jobs, max(0.0, until - time.monotonic()))
        for job in jobs:
            run, found = self._runs[job.removeprefix("look ")], looked.get(job)
            run.found = found or run.found or Found()
            now, passed = time.time(), time.monotonic()
            run.report = judge(run.name, run.found, run.age, now, passed)
            if found is None:
                run.report.notes.append(_late(self._patience.late(job)))
        return [report for word in self._folders for report in self._reports(word)]

    def runs(self) -> list[Run]:
        """Returns the runs of the last look."""
        return [self._runs[name] for named in self._of.values() for name in named]

    def _list(self, seconds: float) -> None:
        """Finds the runs of each folder; a folder that holds none is one that is not begun."""
        jobs = {
            f"list {word}": lambda folder=folder, word=word: _runs_in(folder, word, DEPTH)
            for word, folder in self._folders.items()
        }
        listed = self._patience.results(jobs, seconds)
        for word, folder in self._folders.items():
            found = listed.get(f"list {word}") or {word: folder}
            if f"list {word}" in listed or word not in self._of:
                self._of[word] = list(found)
            for name, run in found.items():
                if name not in self._runs:
                    self._runs[name] = Run(name, RunFiles(run))

    def _reports(self, word: str) -> list[Report]:
        reports = [self._runs[name].report for name in self._of[word]]
        known = [report for report in reports if report is not None]
        return sorted(known, key=lambda report: _RANKS.get(report.state, len(_RANKS)))


def _late(seconds: float) -> str:
    return f"its disk or store has not answered for {seconds:.0f} s; the rest is from before"


def _runs_in(folder: Folder, name: str, depth: int) -> dict[str, Folder]:
    """Returns the runs in a folder by name; itself where it is one. It raises nothing."""
    try:
        there = sorted(names(folder))
        if not depth or {*SIGNS, STEPS}.intersection(there):
            return {name: folder} if {*SIGNS, STEPS}.intersection(there) else {}
        found: dict[str, Folder] = {}
        for inner in there:
            if not inner.startswith("."):
                shown = f"{name.rstrip('/')}/{loose.words(inner, 200)}"
                found |= _runs_in(folder / inner, shown, depth - 1)
        return found
    except (OSError, UserError):
        return {}
