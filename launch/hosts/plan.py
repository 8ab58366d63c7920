"""What is to run on which host, with which code: all that a launch has decided beforehand."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from configs.errors import UserError
from launch.hosts.host import Host
from launch.hosts.snapshot import Snapshot
from launch.job import Job

ROOT = "~/manyheads"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job on hosts."""

    job: Job  # its paths are those on the hosts
    name: str
    hosts: tuple[Host, ...]
    snapshot: Snapshot
    within: str = "."  # folder of the code that the job runs in
    root: str = ROOT  # folder of code, environments and jobs on each host
    coordinator: str = ""  # HOST:PORT of process 0
    interpreter: str = ""  # a python with all packages; empty: an environment is made
    python: str = ""  # what it is made of
    extras: tuple[str, ...] = ()  # of setup.cfg
    auto: bool = True  # whether the extra of a host's devices is added
    stall: float = 0.0  # minutes
    launcher: str = "launch.ssh"  # whose verbs stop and show the job

    def share(self, index: int) -> dict[str, Any]:
        """Returns which processes of the run are those of a host, for ``launch.group.Share``."""
        processes = self.job.resources.processes
        return dict(
            count=processes,
            first=index * processes,
            total=self.job.resources.total,
            coordinator=self.coordinator,
        )

    def prepare_request(self) -> dict[str, Any]:
        """Returns what ``remote.prepare`` is asked."""
        return dict(
            root=self.root,
            code=self.snapshot.digest,
            interpreter=self.interpreter,
            python=self.python,
            extras=list(self.extras),
            auto=self.auto,
        )

    def start_request(
        self, index: int, attempt: str, known: str, prepared: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns what ``remote.jobs`` is asked to start on a host.

        Args:
          index: of the host.
          attempt: of the job.
          known: the latest before, that this launcher knows of.
          prepared: the host's answer to ``prepare_request``.
        """
        return dict(
            action="start",
            root=self.root,
            name=self.name,
            attempt=attempt,
            known=known,
            code=prepared["code"],
            python=prepared["python"],
            cwd=f"{prepared['code']}/{self.within}",
            job=self.about(),
            agent=dict(
                share=self.share(index),
                arguments=self.job.arguments(),
                environment=dict(self.job.environment),
                workdir=self.job.workdir,
                stall=self.stall,
            ),
        )

    def about(self) -> dict[str, Any]:
        """Returns the record of the job on each host: JSON, without the environment's values."""
        return self.job.about() | dict(
            name=self.name,
            code=self.snapshot.about(),
            hosts=[host.name for host in self.hosts],
            coordinator=self.coordinator,
        )

    def same(self, recorded: dict[str, Any]) -> list[str]:
        """Returns in what a record of a job differs from this one; empty where it is the same."""
        ours, theirs = _compared(self.about()), _compared(recorded)
        return sorted(name for name in ours if theirs.get(name) != ours[name])


def _compared(about: dict[str, Any]) -> dict[str, Any]:
    """Returns that of a record by which jobs are told apart: what is run, and on how many."""
    resources = about.get("resources")
    known = resources if isinstance(resources, dict) else {}
    return about | dict(resources=[known.get(name) for name in ("hosts", "processes")])


def job_name(given: str, workdir: str) -> str:
    """Returns the name of a job: as given, or of its workdir.

    Raises:
      UserError: it is none.
    """
    if not given:
        last = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(workdir).name).strip("-")[:40] or "job"
        return f"{last}-{hashlib.sha256(os.fsencode(workdir)).hexdigest()[:8]}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", given):
        raise UserError(
            f"--name={given} is no name of a job; take at most 63 letters, digits, '.', '_' and "
            "'-', a letter or digit first."
        )
    return given


def on_hosts(workdir: str, root: str) -> str:
    """Returns a run's folder as the hosts have it: a relative one lies in ``root`` there."""
    if not workdir or "://" in workdir or workdir.startswith(("/", "~")):
        return workdir
    return f"{root}/{workdir}"
