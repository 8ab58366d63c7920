"""``python -m launch.status`` as a person gives it: once, on a terminal, for a program."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from configs.errors import UserError
from launch.status import __main__ as status
from launch.status.looks import Looks
from tests.launch.status import workdirs
from tests.launch.status.workdirs import build, rows, session
from tests.train.processes import running


def command(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "launch.status", *map(str, words)],
        cwd=running.ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=running.environment() | more,
    )


def test_in_a_pipe_it_is_printed_once_and_written_for_a_program(tmp_path):
    build(tmp_path / "runs" / "a b", session(), rows(400), [(400, 60)])
    build(tmp_path / "runs" / "ended", session(state="failed", reason="the disk is full"))
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    done = command(tmp_path / "runs", tmp_path / "new", f"--json={tmp_path}/out.json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    row = "running, training 400 of 1,000 0.0025 0.0050 2,000 1 400, 1m.*s ago 19s"
    assert re.fullmatch(re.escape(f"{tmp_path}/runs/a b ") + row, lines[2])
    assert f"{tmp_path}/runs/ended: the disk is full" in lines
    held = json.loads((tmp_path / "out.json").read_text())
    assert [run["state"] for run in held["runs"]] == ["running", "failed", "not begun"]
    assert held["runs"][0]["left_seconds"] == pytest.approx(600 * 64 / 2000)
    (tmp_path / "out.json").unlink()
    after = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    assert after == before, "nothing is written where one looks"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "WORKDIR is missing; name one or more, --help lists the flags."),
        (("ftp://x/y",), "WORKDIR=ftp://x/y cannot be written: of object stores"),
        (("a", "--onec"), "--onec is not a flag (did you mean 'once'?); --help lists the flags."),
        (("a", "--every=0.1"), "flag --every=0.1: "),
        (("a", "--json=/nowhere/x"), "--json=/nowhere/x cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(words, said):
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_stacks_of_a_run_that_nobody_supervises(tmp_path):
    code = "print(flush=True); input()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.readline()
        mine = workdirs.here() | dict(pid=child.pid, seconds=0.1)
        mine.pop("started")
        build(tmp_path / "a", session(processes=[mine, workdirs.ELSEWHERE | dict(seconds=0.1)]))
        done = command(tmp_path / "a", "--stacks", f"--json={tmp_path}/out.json", PATH="/nowhere")
        assert child.poll() is None, "it was sent no signal"
        child.communicate(b"\n")
    assert done.returncode == 0, done.stderr
    held = json.loads((tmp_path / "out.json").read_text())["stacks"]
    assert [one["process"] for one in held] == [0, 1]
    assert f"{tmp_path}/a: process 1 on hostb runs elsewhere; give the same command there." in (
        done.stdout.splitlines()
    )
    done = command(build(tmp_path / "b", session(state="finished")), "--stacks")
    assert done.stdout.splitlines()[-1] == "no run goes on, so there are no stacks to show"


class Terminal:
    """A command on a terminal, and what it has shown."""

    def __init__(self, *words):
        self.master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.status", *map(str, words)],
            cwd=running.ROOT,
            env=running.environment() | {"TERM": "xterm", "COLUMNS": "140", "LINES": "40"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def read_until(self, pattern, seconds=30.0):
        until = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            assert time.monotonic() < until, self.shown
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 1 << 16).decode(errors="replace")
                except OSError:
                    time.sleep(0.1)

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_is_refreshed_until_a_signal_comes(tmp_path, number):
    out = tmp_path / "out.json"
    build(tmp_path / "runs" / "a", session(), rows(400))
    terminal = Terminal(tmp_path / "runs", "--every=0.5", f"--json={out}")
    try:
        terminal.read_until("running, training")
        build(tmp_path / "runs" / "a", session(state="finished", step=1000))
        terminal.read_until("finished")
        build(tmp_path / "runs" / "b", session(doing="evaluating"))
        terminal.read_until("running, evaluating")
        terminal.process.send_signal(number)
        assert terminal.process.wait(20) == 128 + number
        terminal.read_until(re.escape("\x1b[?25h"))  # the cursor is there again
    finally:
        terminal.end()
    assert "Traceback" not in terminal.shown
    states = [run["state"] for run in json.loads(out.read_text())["runs"]]
    assert states == ["running", "finished"]


def test_once_on_a_terminal_it_ends_by_itself(tmp_path):
    build(tmp_path / "a", session(), rows(400))
    terminal = Terminal(tmp_path / "a", "--once")
    try:
        terminal.read_until("running, training")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.end()


def test_what_seems_silent_is_looked_at_until_its_sign_changes_or_is_due(tmp_path, monkeypatch):
    elsewhere = [workdirs.ELSEWHERE | dict(seconds=0.1)]
    monkeypatch.setattr(status, "EVERY", 0.5)
    waits, sleep = [], time.sleep

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            build(tmp_path / "a", session(ago=190, processes=elsewhere, beat=2, every=1.0))

    monkeypatch.setattr(time, "sleep", wait)
    build(tmp_path / "a", session(ago=200, processes=elsewhere, beat=1, every=1.0))
    (report,) = status._look(Looks([str(tmp_path)]))
    assert (report.state, len(waits)) == ("running", 2)
    waits.clear()
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds) or sleep(0.3))
    (report,) = status._look(Looks([str(tmp_path)]))
    assert report.state == "silent"
    assert 2 <= len(waits) <= 6


def test_one_that_is_not_a_folder_is_refused_before_anything_is_shown():
    with pytest.raises(UserError, match="WORKDIR="):
        status.main("s3://bucket")
