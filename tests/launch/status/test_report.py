"""Each state that a run can be in is told, from folders made by hand."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch.status.found import RunFiles
from launch.status.report import Age, judge
from tests.launch.status import workdirs
from tests.launch.status.workdirs import ELSEWHERE, build, rows, session
from tests.train.processes import running
from train.processes.whereabouts import here


def told(folder, age=None, later=0.0):
    """Returns the report of a folder, as if looked at so many seconds later."""
    found = RunFiles(folder).look()
    now, passed = time.time() + later, time.monotonic() + later
    return judge("run", found, age or Age(), now, passed)


def test_a_run_that_trains(tmp_path):
    signs = [here() | dict(seconds=0.4), ELSEWHERE | dict(seconds=1.2)]
    metrics = rows(400, hosts=(0.01, 0.25))
    report = told(build(tmp_path, session(processes=signs), metrics, [(200, 900), (400, 61)]))
    assert (report.state, report.doing) == ("running", "training")
    assert (report.step, report.steps) == (400, 1000)
    assert report.loss == pytest.approx(1 / 400)
    assert report.held_out == pytest.approx(2 / 400)
    assert report.tokens_per_second == 2000
    assert (report.processes, report.hosts) == (2, 2)
    assert report.saved_step == 400
    assert 60 < report.saved_seconds < 75
    assert report.left_seconds == pytest.approx(600 * workdirs.STEP_TOKENS / 2000)
    assert 0.9 < report.sign_seconds < 10
    assert report.slowest["process"] == 1
    assert report.notes == [
        "slowest host: process 1 on hostb, 0.250 s of its own a step (median of all: 0.130 s)"
    ]


def test_time_left_is_of_the_median_pace_and_nothing_where_it_is_not_known(tmp_path):
    metrics = rows(400)
    metrics[-3]["tokens_per_second"] = 1.0  # a step that waited for a save
    metrics[-5]["tokens_per_second"] = None
    report = told(build(tmp_path / "a", session(), metrics))
    assert report.left_seconds == pytest.approx(600 * workdirs.STEP_TOKENS / 2000)
    assert told(build(tmp_path / "b", session(step=None), ())).left_seconds is None
    assert told(build(tmp_path / "c", session(), metrics, config=False)).left_seconds is None
    compiling = told(build(tmp_path / "d", session(doing="compiling"), metrics))
    assert compiling.left_seconds is None, "the pace is of a session before"
    assert told(build(tmp_path / "e", session(ago=3600), metrics)).left_seconds is None


@pytest.mark.parametrize(
    ("alive", "state", "note"),
    [
        (session(state="finished", step=1000), "finished", None),
        (
            session(state="stopped", signal=15),
            "stopped",
            "it was asked to end by SIGTERM; the same command goes on",
        ),
        (session(state="failed", reason="no room\nmore"), "failed", "no room"),
        (session(state="dancing"), "unknown", None),
    ],
)
def test_a_run_that_has_ended_says_how_however_long_ago(tmp_path, alive, state, note):
    report = told(build(tmp_path, alive, rows(400)), later=10**6)
    assert report.state == state
    assert report.notes == ([note] if note else [])
    assert report.left_seconds is None
    assert report.doing == ""


def test_a_run_that_was_killed_is_told_from_one_that_is_stopped_or_runs(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        about = here() | dict(pid=process.pid, seconds=0.1)
        about.pop("started")
        build(tmp_path, session(processes=[about]), rows(400))
        assert told(tmp_path).state == "running"
        process.send_signal(signal.SIGSTOP)
        running.wait_until(lambda: told(tmp_path).silent)
        report = told(tmp_path)
        assert (report.state, report.silent[0]["process"]) == ("running", 0)
        assert f"a signal stopped it (kill -CONT {process.pid})" in report.notes[0]
        report = told(tmp_path, later=60)
        assert report.state == "silent"
        assert report.notes[0].startswith(f"process 0 on {here()['host']} has given no sign for 1m")
        process.kill()
        process.wait()
        report = told(tmp_path)
    assert report.state == "failed"
    assert report.notes[0].endswith(
        "is gone and said nothing at its end: it was killed, or ran out of memory"
    )


def test_a_number_that_another_process_has_now_does_not_make_a_run_live(tmp_path):
    about = here() | dict(started=here()["started"] - 1, seconds=0.1)
    assert told(build(tmp_path, session(processes=[about]))).state == "failed"


def test_a_run_elsewhere_is_silent_when_its_sign_is_old_and_clocks_are_asked(tmp_path):
    signs = [ELSEWHERE | dict(seconds=0.1)]
    report = told(build(tmp_path / "a", session(ago=30, processes=signs)))
    assert (report.state, report.doubtful) == ("running", False)
    report = told(build(tmp_path / "b", session(ago=90, processes=signs)))
    assert (report.state, report.doubtful, report.doing) == ("silent", True, "training")
    assert report.notes == ["process 0 on hostb has given no sign for 1m30s"]
    assert report.silent[0]["seconds"] == pytest.approx(90, abs=5)
    report = told(build(tmp_path / "c", session(ago=9000, processes=signs)))
    assert (report.state, report.doubtful) == ("silent", False), "no clock is so wrong"


@pytest.mark.parametrize("ahead", [-600, 600])
def test_clocks_that_disagree_do_not_matter_once_a_sign_is_seen_to_change(tmp_path, ahead):
    age, signs = Age(), [ELSEWHERE | dict(seconds=0.1)]

    def look(beat, later):
        build(tmp_path, session(ago=later * -1 - ahead, processes=signs, beat=beat))
        return told(tmp_path, age, later).state

    assert look(1, 0) == ("silent" if ahead < 0 else "running")
    assert look(2, 10) == "running"
    assert look(2, 40) == "running"
    assert look(2, 60) == "silent", "though its clock is ahead"
    assert look(3, 70) == "running"


def test_a_process_that_gives_no_sign_is_named_with_how_long(tmp_path):
    signs = [
        here() | dict(seconds=0.4),
        ELSEWHERE | dict(seconds=23.0),
        ELSEWHERE | dict(host="hostc", seconds=4.0),
        {},
    ]
    report = told(build(tmp_path, session(ago=2, processes=signs)))
    assert report.state == "running"
    assert [(one["process"], one["host"]) for one in report.silent] == [(1, "hostb"), (3, "")]
    assert report.silent[0]["seconds"] == pytest.approx(25, abs=1.5)
    assert report.notes[0].startswith("process 1 on hostb has given no sign for 2")
    assert report.notes[1] == "process 3 has given no sign yet"
    assert (report.processes, report.hosts) == (4, 3)
    fresh = session(processes=signs[:1] + [{}], began=workdirs.iso(5))
    assert not told(build(tmp_path, fresh)).silent, "it is on its way"


def test_a_loop_that_stands_still_is_told_though_its_process_gives_signs(tmp_path):
    report = told(build(tmp_path, session(still=200.0), rows(400)))
    assert report.state == "running"
    assert report.notes == ["no step has been finished for 3m21s"]
    assert not told(build(tmp_path, session(still=200.0, doing="saving"), rows(400))).notes


def test_a_run_without_a_word_of_its_own_is_judged_by_what_it_left(tmp_path):
    assert told(tmp_path / "nowhere").state == "not begun"
    assert told(build(tmp_path / "new", config=False)).state == "not begun"
    report = told(build(tmp_path / "old", None, rows(1000), [(1000, 99)]))
    assert (report.state, report.step, report.steps) == ("finished", 1000, 1000)
    report = told(build(tmp_path / "half", None, rows(400)))
    assert (report.state, report.notes) == ("stopped", ["how it ended is not on record"])
    report = told(build(tmp_path / "saved", None, (), [(300, 99)]))
    assert (report.state, report.step) == ("stopped", 300)


def test_who_has_the_folder_tells_of_a_run_that_has_not_spoken_yet(tmp_path):
    mine = here() | dict(since=workdirs.iso(3))
    before = session(state="failed", reason="of old", processes=[ELSEWHERE])
    report = told(build(tmp_path / "here", before, rows(400), holder=mine))
    assert (report.state, report.doing, report.notes) == ("running", "starting", [])
    report = told(build(tmp_path / "mute", None, holder=mine | dict(since=workdirs.iso(500))))
    assert report.state == "running"
    assert report.notes[0].endswith("has the folder, and writes no alive.json")
    report = told(build(tmp_path / "dead", None, holder=workdirs.dead()))
    assert report.state == "failed"
    assert "which had the folder, is gone" in report.notes[0]
    away = ELSEWHERE | dict(since=workdirs.iso(500))
    report = told(build(tmp_path / "away", None, holder=away))
    assert report.state == "silent"
    assert report.notes == [
        "process 77 on hostb has the folder, and has given no sign that is on record"
    ]
    report = told(build(tmp_path / "come", None, holder=away | dict(since=workdirs.iso(5))))
    assert report.state == "running"


def test_accidents_restarts_and_stacks_on_record_are_told(tmp_path):
    events = [
        dict(step=7, kind="loss spike", action="skip"),
        dict(step=9, kind="loss spike", action="skip"),
        dict(step=30, kind="gradient", action="rollback"),
    ]
    earlier = [
        dict(state="lost", step=10),
        dict(state="lost", step=20),
        dict(state="failed", step=25, reason="process 1 on hostb was killed"),
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    build(tmp_path, session(earlier=earlier), rows(400), events_jsonl=text)
    for name in ("20260101-101010", "20260102-101010"):
        (tmp_path / "stacks" / name).mkdir(parents=True)
    report = told(tmp_path)
    assert report.accidents == {"skip": 2, "rollback": 1}
    assert report.sessions == 4
    assert report.notes == [
        "3 accidents (rollback 1, skip 2); last: gradient of step 30",
        "start 4; those before: failed 1, lost 2; the last came to step 25 "
        "(process 1 on hostb was killed)",
        f"stacks of processes that hung: {tmp_path}/stacks/20260102-101010",
    ]


def test_a_saved_step_that_is_cut_off_is_passed_over_for_the_one_before(tmp_path):
    build(tmp_path, session(), rows(400), [(100, 500), (200, 400), (300, 300)])
    (tmp_path / "checkpoints" / "300" / "state.json").unlink()
    (tmp_path / "checkpoints" / "200" / "manifest.json").write_text('{"format":')
    os.makedirs(tmp_path / "checkpoints" / "400")  # is being written
    files = RunFiles(tmp_path)
    assert files.look().saved.step == 100
    workdirs.save(tmp_path, 500, 1)
    assert files.look().saved.step == 500
    assert files.look().saved.step == 500
