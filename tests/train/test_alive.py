"""alive.json: what a run says of itself while it goes on, and that it never ends the run."""

import contextlib
import datetime
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from configs.errors import UserError
from tests.train import tiny
from tests.train.processes import running
from train import alive, heartbeat
from train.alive import ALIVE, Alive
from train.loop import train
from train.processes import abort
from train.processes.whereabouts import here

QUIET = Console(quiet=True)
FIELDS = {"steps": 6, "steps_per_call": 2, "log.eval_batches": 1}
SIGNS = {0: dict(host="hosta", pid=7, seconds=0.0), 2: dict(host="hostb", pid=8, seconds=31.5)}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(alive, "EVERY", 0.05)


@pytest.fixture(autouse=True)
def no_end():
    yield
    abort.before_end(None)


def read(folder):
    return json.loads((folder / ALIVE).read_text())


def of(folder, writes=True, steps=100):
    return Alive(folder, steps, 3, lambda: SIGNS, writes)


@contextlib.contextmanager
def begun(folder, **options):
    with of(folder, **options) as run:
        run.begin()
        yield run


def test_a_start_that_is_refused_leaves_what_the_run_has_said(tmp_path):
    train(tiny.config(FIELDS), tmp_path, QUIET)
    before = read(tmp_path)
    with pytest.raises(UserError, match="batch_size"):
        train(tiny.config(FIELDS | {"batch_size": 4}), tmp_path, QUIET)
    assert read(tmp_path) == before
    train(tiny.config(FIELDS), tmp_path, QUIET)  # it is over
    assert read(tmp_path) == before


def test_it_says_what_the_run_does_as_long_as_it_goes_on(tmp_path, quick):
    heartbeat.busy(heartbeat.EVALUATING, 41)  # of a run before in this process
    with begun(tmp_path) as run:
        running.wait_until((tmp_path / ALIVE).exists)
        first = read(tmp_path)
        assert (first["state"], first["doing"], first["step"]) == ("running", "starting", None)
        assert (first["steps"], first["every"], first["earlier"]) == (100, 0.05, [])
        numbered = [dict(index=0, **SIGNS[0]), dict(index=1), dict(index=2, **SIGNS[2])]
        assert first["processes"] == numbered
        heartbeat.finished(7)
        running.wait_until(lambda: read(tmp_path)["step"] == 7)
        heartbeat.busy(heartbeat.SAVING)
        running.wait_until(lambda: read(tmp_path)["doing"] == "saving")
        later = read(tmp_path)
        assert later["step"] == 7
        assert later["beat"] > first["beat"]
        assert later["session"] == first["session"]
        written = datetime.datetime.fromisoformat(later["written"])
        assert abs(written.timestamp() - time.time()) < 5
        time.sleep(0.3)
        assert 0.2 <= read(tmp_path)["still"] < 30
        run.ends(True)
    assert read(tmp_path)["state"] == "finished"
    assert not run._thread.is_alive()


def test_a_run_says_how_it_ended(tmp_path, monkeypatch):
    train(tiny.config(FIELDS), tmp_path, QUIET)
    held = read(tmp_path)
    assert (held["state"], held["step"], held["steps"]) == ("finished", 6, 6)
    (process,) = held["processes"]
    assert process == here() | dict(index=0, stacks=None, seconds=0.0)

    take = heartbeat.finished

    def stop(step):
        take(step)
        if step == 10:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(heartbeat, "finished", stop)
    outcome = train(tiny.config(FIELDS | {"steps": 40}), tmp_path, QUIET)
    held = read(tmp_path)
    assert (held["state"], held["signal"]) == ("stopped", signal.SIGTERM)
    assert held["step"] == outcome.step < 40
    assert [(one["state"], one["step"]) for one in held["earlier"]] == [("finished", 6)]

    def fail(step):
        raise UserError("the disk is full; free space.")

    monkeypatch.setattr(heartbeat, "finished", fail)
    with pytest.raises(UserError, match="the disk is full"):
        train(tiny.config(FIELDS | {"steps": 40}), tmp_path, QUIET)
    held = read(tmp_path)
    assert (held["state"], held["reason"]) == ("failed", "the disk is full; free space.")
    assert [one["state"] for one in held["earlier"]] == ["finished", "stopped"]


def test_what_an_error_says_that_is_no_sentence_stays_out_of_the_file(tmp_path):
    with pytest.raises(ValueError), begun(tmp_path):
        raise ValueError("token=secret")
    assert (read(tmp_path)["state"], read(tmp_path)["reason"]) == ("failed", "ValueError")


def test_a_session_that_could_not_say_how_it_ended_was_lost(tmp_path, quick):
    for _ in range(3):
        run = of(tmp_path)
        run.__enter__()
        run.begin()
        running.wait_until((tmp_path / ALIVE).exists)
        running.wait_until(lambda run=run: read(tmp_path)["session"] == run._session)
        run._write = lambda: None  # it was killed
        run._over.set()
        run._thread.join()
    assert [one["state"] for one in read(tmp_path)["earlier"]] == ["lost", "lost"]


def test_of_many_sessions_the_last_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(alive, "EARLIER", 4)
    for number in range(9):
        with begun(tmp_path) as run:
            heartbeat.finished(number)
            run.ends(False, 15)
    assert [one["step"] for one in read(tmp_path)["earlier"]] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "before", ["", "[", "[3]", "5", '{"state": 5}', '{"earlier": 4}', "[" * 9999]
)
def test_what_lies_there_before_is_no_matter(tmp_path, before):
    (tmp_path / ALIVE).write_text(before)
    with begun(tmp_path) as run:
        run.ends(True)
    assert (read(tmp_path)["state"], read(tmp_path)["earlier"]) == ("finished", [])


def test_other_processes_write_nothing(tmp_path):
    with begun(tmp_path, writes=False) as run:
        run.ends(True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["full", "gone", "deaf"])
def test_a_disk_that_cannot_be_written_is_nothing_to_the_run(tmp_path, monkeypatch, quick, fault):
    tries = []

    def write(path, text):
        tries.append(path.name)
        if fault == "full":
            raise UserError(f"{path} cannot be written ({os.strerror(errno.ENOSPC)}); free space.")
        if fault == "gone":
            raise RuntimeError("of a store's client")
        threading.Event().wait(20)

    monkeypatch.setattr(alive, "write_text", write)
    monkeypatch.setattr(alive, "LEAVING", 0.2)
    outcome = train(tiny.config(FIELDS), tmp_path / "run", QUIET)
    assert outcome.step == 6
    assert set(tries) == {ALIVE}
    assert not (tmp_path / "run" / ALIVE).exists()


def test_a_disk_that_does_not_answer_keeps_no_run_from_its_end(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(alive, "write_text", lambda path, text: over.wait(30))
    monkeypatch.setattr(alive, "LEAVING", 0.2)
    began = time.monotonic()
    with begun(tmp_path) as run:
        run.ends(True)
    assert time.monotonic() < began + 10
    over.set()
    run._thread.join()


def test_signs_that_cannot_be_had_are_nothing_to_the_run(tmp_path, quick):
    def fails():
        raise RuntimeError("the coordinator is gone")

    with Alive(tmp_path, 100, 2, fails) as run:
        run.begin()
        time.sleep(0.2)
        run.ends(True)
    assert not (tmp_path / ALIVE).exists()


def test_a_disk_without_room_leaves_the_word_before(disk):
    folder, _ = disk
    with begun(folder):
        running.wait_until((folder / ALIVE).exists)
        before = read(folder)
        with open(folder / "filler", "wb") as file:
            about = os.statvfs(folder)
            os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_bsize)
    assert read(folder) == before


ENDS = """
import os, sys, threading, time
from pathlib import Path
from train import alive
from train.alive import Alive
from train.processes import abort

alive.LEAVING = abort.LAST = 0.5
with Alive(Path(sys.argv[1]), 100, 1, dict) as run:
    run.begin()
    {}
"""


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [
        ("abort.end('process 1 was killed.', 75)", "failed", "process 1 was killed."),
        ("abort.end('asked to end.', 143)", "stopped", "asked to end."),
        ("run.ends(True); abort.end('too late.', 75)", "finished", None),
        (
            "abort.on_abort(lambda: ('aborted.', 75)); time.sleep(0.3); os.abort()",
            "running",
            None,
        ),
    ],
)
def test_a_process_that_ends_where_it_stands_says_so_first(tmp_path, how, state, reason):
    words = [sys.executable, "-c", ENDS.format(how), str(tmp_path)]
    done = subprocess.run(words, cwd=running.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (75, 143), done
    held = read(tmp_path)
    assert (held["state"], held.get("reason")) == (state, reason)


def test_a_disk_that_does_not_answer_keeps_no_process_from_ending(tmp_path):
    how = "alive.write_text = lambda *_: time.sleep(60); abort.end('process 1 was killed.', 75)"
    began = time.monotonic()
    words = [sys.executable, "-c", ENDS.format(how), str(tmp_path)]
    done = subprocess.run(words, cwd=running.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "error: process 1 was killed.\n")
    assert time.monotonic() - began < 20


def test_after_an_error_the_sentence_that_explains_it_is_kept(tmp_path):
    with pytest.raises(RuntimeError), begun(tmp_path):
        raise RuntimeError("a collective failed")
    abort._before_end("process 1 on hostb was killed.", 75)  # what the watch finds out
    held = read(tmp_path)
    assert (held["state"], held["reason"]) == ("failed", "process 1 on hostb was killed.")
