"""How runs get on: ``python -m launch.status runs/two gs://bucket/run``.

Each WORKDIR is a run's folder, or one that holds runs, as a sweep's does. On a terminal the table
is refreshed until Ctrl-C; elsewhere, and with ``--once``, it is printed once. ``--stacks`` shows
where the threads of the run's processes on this machine are. Nothing in a WORKDIR is written.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take a moment

import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.console import Console
from rich.live import Live

from configs import command
from configs.console import SteadyConsole
from configs.figures import define_json, write_json
from launch.status import loose, stacks
from launch.status.looks import Looks
from launch.status.report import RUNNING, SILENT, Report
from launch.status.table import render

WIDTH = 2000  # columns, where there is no terminal: each run keeps to its row
EVERY, EVERY_IN_STORE = 5.0, 15.0  # seconds
PATIENCE = 60.0  # seconds for a disk or a store to answer
LOOKING = 1.0  # seconds between looks at what may only seem silent


def _define_flags() -> None:
    define_json()
    flags.DEFINE_bool("once", False, "Print the table once, though this be a terminal.")
    flags.DEFINE_bool("stacks", False, "Also show the stacks of the processes here; once.")
    flags.DEFINE_float(
        "every",
        None,
        f"Seconds between two looks; {EVERY:g}, or {EVERY_IN_STORE:g} where a folder is in an "
        "object store.",
        0.5,
    )


def main(*words: str) -> None:
    """Shows how the runs of some folders get on."""
    given = flags.FLAGS
    looks = Looks(words)
    every = given.every or (EVERY_IN_STORE if looks.in_store else EVERY)
    console = SteadyConsole()
    if console.is_terminal and not (given.once or given.stacks):
        _watch(looks, every, console)
        return
    reports = _look(looks)
    wide = Console(width=None if console.is_terminal else WIDTH)
    wide.print(render(reports, wide))
    figures = _figures(reports)
    if given.stacks:
        figures["stacks"] = _show_stacks(looks, console)
    if given.json:
        write_json(given.json, figures)
    console.check()


def _look(looks: Looks) -> list[Report]:
    """Looks once, and again at what may only seem silent, as clocks disagree."""
    reports = looks.round(PATIENCE)
    doubtful = [report.workdir for report in reports if report.doubtful]
    files = [run.found.session for run in looks.runs() if run.name in doubtful and run.found]
    until = time.monotonic() + max((s.every + EVERY for s in files if s is not None), default=0.0)
    while doubtful and time.monotonic() < until:
        time.sleep(LOOKING)
        reports = looks.round(PATIENCE, doubtful)
        doubtful = [report.workdir for report in reports if report.doubtful]
    return reports


def _watch(looks: Looks, every: float, console: Console) -> None:
    """Shows the table until a signal comes, which is the exit status."""
    with keyboard.Interrupt() as interrupt, Live(console=console, auto_refresh=False) as live:
        while interrupt.signal is None:
            reports = looks.round(every)
            live.update(render(reports, console), refresh=True)
            if flags.FLAGS.json:
                write_json(flags.FLAGS.json, _figures(reports))
            until = time.monotonic() + every
            while interrupt.signal is None and time.monotonic() < until:
                time.sleep(0.1)
    sys.exit(128 + interrupt.signal)


def _figures(reports: Sequence[Report]) -> dict[str, Any]:
    return dict(time=time.time(), runs=[report.figures() for report in reports])


def _show_stacks(looks: Looks, console: Console) -> list[dict[str, Any]]:
    """Prints the stacks of the processes of the runs that go on, as far as they can be had."""
    told: list[dict[str, Any]] = []

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for run in looks.runs():
        if run.report is None or run.report.state not in (RUNNING, SILENT) or run.found is None:
            continue
        session, holder = run.found.session, run.found.holder
        known = session.processes if session else (holder,) if holder else ()
        for process in known:
            about: dict[str, Any] = dict(
                workdir=run.name, process=process.index, host=process.host, stacks=None, why=None
            )
            told.append(about)
            try:
                about["stacks"] = stacks.of(process)
            except stacks.Unknown as error:
                about["why"] = str(error)
                say(f"{run.name}: {process} {error}.")
                continue
            say(f"{run.name}: stacks of {process}, pid {process.pid}")
            for line in about["stacks"].splitlines():
                say(f"  {loose.words(line, 1000) if line.strip() else ''}")
    if not told:
        say("no run goes on, so there are no stacks to show")
    return told


if __name__ == "__main__":
    command.run(main, _define_flags, words="WORKDIR")
