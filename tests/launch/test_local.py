"""Several processes started by one command, and what becomes of their signals and statuses."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import local
from tests.train.processes import running
from train.metrics import read


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", *arguments],
        cwd=running.ROOT,
        env=running.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sleeper(code):
    return subprocess.Popen([sys.executable, "-c", code], text=True)


def test_ctrl_c_stops_all_processes_and_saves(tmp_path):
    words = (*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}", "--processes", "2")
    (run,) = processes = [command(*words, "--config.steps=100000")]
    running.wait_until(lambda: len(read(tmp_path)) >= 2)
    run.send_signal(signal.SIGINT)
    (ended,) = running.ended(processes, 60)
    assert ended.status == 128 + signal.SIGTERM
    assert re.search(r"stopped by a signal and saved at step \d+; run again", ended.out)
    assert "peer ranks" not in ended.out
    assert not ended.err


def test_what_gloo_says_is_not_shown_whole_or_in_pieces():
    said = (
        "[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected peer ranks is : "
        "3\n"
        "[Gloo] Rank [Gloo] Rank 01 is connected to  is connected to 3\n"
        " 3 peer ranks. Expected number of connected peer ranks is : 3\n"
        "0\n"
        "step 3/100  loss 4.2\n"
        "3\n"
    )
    shown = io.StringIO()
    local._show(1, io.StringIO(said), shown)
    assert shown.getvalue() == "process 1: step 3/100  loss 4.2\nprocess 1: 3\n"


def children(run):
    """Returns the processes that a launcher has started."""
    return [int(n) for n in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_none_is_left_when_it_is_stopped_before_all_have_come(tmp_path, number):
    words = (*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}", "--processes=2")
    run = command(*words)
    running.wait_until(lambda: len(children(run)) == 2)
    started = children(run)
    run.send_signal(number)
    running.ended([run], 20)
    running.wait_until(lambda: not any(Path(f"/proc/{n}").exists() for n in started), 20)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_whose_parent_was_killed_already_ends():
    none = 1 << 23  # above what Linux gives
    for parent, expected in ((none, (128 + signal.SIGTERM, "")), (os.getpid(), (0, "goes on\n"))):
        code = f"from launch import local; local._end_with_parent({parent}); print('goes on')"
        (ended,) = running.ended(
            [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)], 30
        )
        assert (ended.status, ended.out) == expected


def test_a_mistake_is_one_sentence_of_each_process():
    (ended,) = running.ended([command("--processes=2", "--config=configs/toy.py")], 60)
    assert ended.status == 2
    assert "error: --workdir is missing" in ended.err
    (ended,) = running.ended([command("--config=configs/toy.py")], 60)  # one, where none is named
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "error: --workdir is missing" in ended.err


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("pass", "pass"), (0, "")),
        (("pass", "import sys; sys.exit(3)"), (3, "")),
        (
            (
                "import time; time.sleep(60)",
                "import os; os.kill(os.getpid(), 9)",
                "import time, signal as s; s.signal(15, s.SIG_IGN); time.sleep(60)",
            ),
            (128 + 9, "process 1 was ended by SIGKILL"),
        ),
    ],
)
def test_the_first_that_fails_gives_the_status_and_none_is_left(codes, expected):
    processes = [sleeper(code) for code in codes]
    assert local.wait(processes, patience=1.0, grace=2.0) == expected
    statuses = [process.poll() for process in processes]
    assert None not in statuses
    if len(codes) == 3:
        assert statuses == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGKILL]


def test_processes_that_cannot_be_started_are_a_crash(monkeypatch):
    started = []

    def start(*arguments):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(sleeper("import time; time.sleep(60)"))
        return started[0]

    monkeypatch.setattr(local, "start", start)
    status, reason, *_ = local.Group(2, [], 0.0, None).run()
    expected = "the processes could not be started (Resource temporarily unavailable)"
    assert (status, reason, started[0].returncode) == (1, expected, -signal.SIGKILL)


def test_a_process_that_is_killed_before_all_have_come_is_named(tmp_path):
    words = (*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}", "--processes=2")
    run = command(*words)
    running.wait_until(lambda: len(children(run)) == 2)
    os.kill(children(run)[1], signal.SIGKILL)
    (ended,) = running.ended([run], 60)
    assert ended.status == 128 + signal.SIGKILL
    assert ended.err.splitlines()[-1] == (
        "error: process 1 was ended by SIGKILL; the same command goes on from what was saved."
    )


def test_the_flags_of_training_are_passed_on():
    words = ["--processes", "2", "--config=a.py", "--processes=4", "--config.steps=3", "--workdir"]
    assert local._of_train(words) == ["--config=a.py", "--config.steps=3", "--workdir"]
    own = ["--restarts=3", "-stall", "5", "--backoff=1", "--backoff_max", "60", "--config.seed=1"]
    assert local._of_train(own) == ["--config.seed=1"]
    named = ["--workdir", "stall", "--config", "processes"]
    assert local._of_train(named) == named


def test_hangs_are_looked_for_where_there_are_restarts():
    given = ((None, 0, 0.0), (None, 1, 10.0), (0.0, 1, 0.0), (3.0, 0, 3.0))
    for stall, restarts, minutes in given:
        assert local._minutes(stall, restarts) == minutes
