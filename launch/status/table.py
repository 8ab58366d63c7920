"""Runs as a table, or, where a terminal is too narrow for it, one after another."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from launch.status import loose
from launch.status.report import (
    FAILED,
    FINISHED,
    RUNNING,
    SILENT,
    STOPPED,
    Report,
)
from train.progress import clock

COLUMNS = ("run", "state", "step", "loss", "held out", "tokens/s", "hosts", "saved", "left")
_RIGHT = ("step", "loss", "held out", "tokens/s")
_STYLES = {RUNNING: "green", FINISHED: "cyan", STOPPED: "yellow", SILENT: "red", FAILED: "red"}


def cells(report: Report) -> dict[str, str]:
    """Returns what the columns say of a run; empty where it is not known."""
    step = "" if report.step is None else f"{report.step:,}"
    steps = "" if report.steps is None else f"{report.steps:,}"
    hosts = ""
    if report.processes is not None:
        hosts = f"{report.hosts or '?'}"
        if report.processes != report.hosts:
            hosts += f" ({report.processes} processes)"
    saved = "" if report.saved_step is None else f"{report.saved_step:,}"
    if report.saved_seconds is not None:
        saved += f", {clock(report.saved_seconds)} ago"
    rate = report.tokens_per_second
    return dict(
        zip(
            COLUMNS,
            (
                loose.words(report.workdir),
                f"{report.state}, {report.doing}" if report.doing else report.state,
                f"{step} of {steps}" if step and steps else step or (steps and f"0 of {steps}"),
                "" if report.loss is None else f"{report.loss:.4f}",
                "" if report.held_out is None else f"{report.held_out:.4f}",
                "" if rate is None else f"{rate:,.0f}",
                hosts,
                saved,
                "" if report.left_seconds is None else clock(report.left_seconds),
            ),
            strict=True,
        )
    )


def render(reports: Sequence[Report], console: Console) -> RenderableType:
    """Returns what is shown of runs: a row and a few lines for each."""
    if not reports:
        return Text("no runs")
    wide = Table(box=box.SIMPLE, show_edge=False)
    shown = [cells(report) for report in reports]
    for name in COLUMNS:
        if any(row[name] for row in shown):
            right = name in _RIGHT
            wide.add_column(name, justify="right" if right else "left", no_wrap=True)
    names = [str(column.header) for column in wide.columns]
    for report, row in zip(reports, shown, strict=True):
        style = _STYLES.get(report.state, "")
        wide.add_row(*(Text(row[name], style if name == "state" else "") for name in names))
    needed = Measurement.get(console, console.options.update(width=10_000), wide).maximum
    if needed > console.width:
        return Group(*(block(r, row) for r, row in zip(reports, shown, strict=True)))
    lines = [
        Text(f"{row['run']}: {note}")
        for report, row in zip(reports, shown, strict=True)
        for note in report.notes
    ]
    return Group(wide, *lines)


def block(report: Report, row: dict[str, str]) -> Text:
    """Returns a run in lines, one for each figure that is known."""
    lines = [Text.assemble(row["run"], ": ", (row["state"], _STYLES.get(report.state, "")))]
    lines += [Text(f"  {name:<8} {row[name]}") for name in COLUMNS[2:] if row[name]]
    lines += [Text(f"  {note}") for note in report.notes]
    return Text("\n").join(lines)
