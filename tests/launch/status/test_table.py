"""What is shown of runs, at any width: nothing that is known is lost."""

import io

import pytest
from rich.console import Console

from launch.status.report import Report
from launch.status.table import render

TRAINS = Report(
    "runs/two",
    state="running",
    doing="training",
    step=1200,
    steps=5000,
    loss=2.34567,
    held_out=2.5,
    tokens_per_second=26123.4,
    processes=4,
    hosts=2,
    saved_step=1000,
    saved_seconds=125.0,
    left_seconds=3725.0,
    notes=["process 1 on hostb has given no sign for 23s"],
)
ENDED = Report("runs/one", state="failed", step=7, notes=["the disk is full"])
NEW = Report("runs/new", state="not begun")


def shown(reports, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(reports, console))
    return console.file.getvalue()


def test_a_wide_table_has_a_row_a_run_and_a_line_a_note():
    lines = shown([TRAINS, ENDED, NEW], 140).splitlines()
    assert " ".join(lines[0].split()) == "run state step loss held out tokens/s hosts saved left"
    assert " ".join(lines[2].split()) == (
        "runs/two running, training 1,200 of 5,000 2.3457 2.5000 26,123 2 (4 processes) "
        "1,000, 2m05s ago 1h02m"
    )
    assert lines[3].split() == ["runs/one", "failed", "7"]
    assert lines[4].split() == ["runs/new", "not", "begun"]
    assert [line.rstrip() for line in lines[5:]] == [
        "runs/two: process 1 on hostb has given no sign for 23s",
        "runs/one: the disk is full",
    ]


def test_columns_of_which_nothing_is_known_are_left_out():
    assert shown([ENDED], 140).splitlines()[0].split() == ["run", "state", "step"]
    assert shown([], 140) == "no runs\n"


def test_one_process_is_one_host():
    alone = Report("runs/one", state="running", processes=1, hosts=1)
    assert shown([alone], 140).splitlines()[2].split() == ["runs/one", "running", "1"]


def test_a_narrow_terminal_has_them_one_after_another():
    assert shown([TRAINS, ENDED], 60) == (
        "runs/two: running, training\n"
        "  step     1,200 of 5,000\n"
        "  loss     2.3457\n"
        "  held out 2.5000\n"
        "  tokens/s 26,123\n"
        "  hosts    2 (4 processes)\n"
        "  saved    1,000, 2m05s ago\n"
        "  left     1h02m\n"
        "  process 1 on hostb has given no sign for 23s\n"
        "runs/one: failed\n"
        "  step     7\n"
        "  the disk is full\n"
    )


@pytest.mark.parametrize("width", [1, 8, 20, 79, 80, 113, 114, 115, 300])
def test_every_figure_is_there_at_every_width(width):
    said = "".join(shown([TRAINS, ENDED], width).split())
    for figure in ("runs/two", "1,200", "2.3457", "26,123", "2m05s", "1h02m", "hostb", "full"):
        assert figure in said
