"""Whatever the files of a run hold, it is told what can be, and nothing fails."""

import io
import json
import os
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from launch.status.found import RunFiles
from launch.status.report import Age, judge
from launch.status.table import render
from tests.launch.status import workdirs
from tests.launch.status.workdirs import build, rows, session

NAMES = ("alive.json", "running.json", "config.json", "metrics.jsonl", "events.jsonl", "run.json")
MANIFEST = "checkpoints/300/manifest.json"
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


def whole(folder):
    """Makes the folder of a run with everything in it, and returns the text of each file."""
    event = json.dumps(dict(step=7, kind="loss", action="skip")) + "\n"
    signs = [dict(workdirs.here(), seconds=0.1), dict(workdirs.ELSEWHERE, seconds=30.0)]
    alive = session(processes=signs, earlier=[dict(state="lost", step=3)])
    build(folder, alive, rows(400, hosts=(0.1, 0.2)), [(200, 50), (300, 40)], signs[0])
    (folder / "events.jsonl").write_text(event)
    (folder / "run.json").write_text("{}")
    return {name: (folder / name).read_bytes() for name in (*NAMES, MANIFEST)}


def shown(folder):
    """Returns the report of a folder and what is shown of it, in a wide and a narrow table."""
    report = judge("run", RunFiles(folder).look(), Age(), time.time(), time.monotonic())
    said = ""
    for width in (160, 40):
        console = Console(file=io.StringIO(), width=width)
        console.print(render([report], console))
        said += console.file.getvalue()
    json.dumps(report.figures(), allow_nan=False)
    assert not any("is not understood" in note for note in report.notes), report.notes
    return report, said


def spoil(data):
    """Draws what becomes of a file: cut off, overwritten, other values at some of its fields."""
    pieces = st.tuples(st.integers(0, len(data)), st.binary(max_size=40))
    over = pieces.map(lambda drawn: data[: drawn[0]] + drawn[1] + data[drawn[0] + len(drawn[1]) :])
    cut = st.integers(0, len(data)).map(lambda size: data[:size])
    documents = [over, cut, st.binary(max_size=60), ANY.map(dumped)]
    if isinstance(held := first_document(data), dict) and held:
        documents.append(
            st.tuples(st.sampled_from(sorted(held)), ANY).map(
                lambda drawn: dumped(held | {drawn[0]: drawn[1]})
            )
        )
    return st.one_of(documents)


def dumped(value):
    return json.dumps(value).encode() + b"\n"


def first_document(data):
    try:
        return json.loads(data.splitlines()[-1])
    except (ValueError, IndexError):
        return json.loads(data) if data else None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a whole run, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, whole(folder)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_files_are_troubles_of_their_run_alone(run, data):
    folder, kept = run
    for name, held in kept.items():
        (folder / name).write_bytes(held)
    for name in data.draw(st.lists(st.sampled_from(sorted(kept)), max_size=3, unique=True)):
        (folder / name).write_bytes(data.draw(spoil(kept[name])))
    shown(folder)


@settings(max_examples=60, deadline=None)
@given(process=st.dictionaries(st.sampled_from(sorted(workdirs.here())), ANY) | ANY)
@example(process=dict(workdirs.here(), pid=-1, seconds=0))
@example(process=dict(workdirs.here(), pid=True, seconds=0))
@example(process=dict(workdirs.here(), pid=2**31, seconds=0))
@example(process=dict(workdirs.here(), pid=0, seconds=-5, stacks=-2))
def test_a_process_that_is_described_anyhow(tmp_path_factory, process):
    folder = tmp_path_factory.mktemp("run")
    mine = workdirs.here() | (process if isinstance(process, dict) else {})
    alive = session(processes=[mine, mine])
    alive["processes"] += [process]
    shown(build(folder, alive, holder=process))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_and_the_rest_is_told(tmp_path, name):
    whole(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\0{" * 9 + b"\n")
    report, said = shown(tmp_path)
    if name not in ("metrics.jsonl", "run.json"):  # what is cut off is usual; what is not read
        assert f"{name} is damaged" in said
    assert report.saved_step == 300
    assert report.step == 400


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    whole(tmp_path)
    for name in NAMES[:3]:
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "alive.json")  # which would be waited at for ever
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    (tmp_path / "running.json").mkdir()
    assert shown(tmp_path)[0].step == 400


def test_nothing_that_a_file_says_steers_a_terminal(tmp_path):
    evil = "a\x1b[2J\x1b]0;x\x07[red]\u202eb\r\nc"
    signs = [workdirs.here() | dict(seconds=0.1), dict(host=evil, seconds=99.0)]
    earlier = [dict(state=evil, reason=evil)]
    alive = session(processes=signs, doing=evil, earlier=earlier)
    build(tmp_path, alive, events_jsonl=json.dumps(dict(action=evil, kind=evil)) + "\n")
    _, said = shown(tmp_path)
    assert "a?[2J?]0;x?[red]?b" in said
    assert not set("\x1b\x07\r\u202e") & set(said)
