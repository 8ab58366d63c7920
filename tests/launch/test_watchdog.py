"""Processes that hang: which is noticed, after how long, and where they were."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import group, watchdog
from launch.watchdog import Watchdog
from tests.train.processes import running
from train import heartbeat
from train.heartbeat import Sign
from train.processes.watch import LOST


class Process:
    """A process that runs, or has ended."""

    def __init__(self, status=None):
        self.status, self.pid = status, 1 << 23  # above what Linux gives

    def poll(self):
        return self.status


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which pass as they are told; each look is soon after the one before."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def looks(dog, processes, clock, minutes):
    """Looks every quarter of a minute; returns what the last look found, and after how long."""
    began = clock[0]
    while clock[0] < began + 60 * minutes:
        clock[0] += 15
        if found := dog.stalled(processes):
            return found, (clock[0] - began) / 60
    return "", minutes


def give(dog, index, *sign):
    Sign(*sign).write(dog.descriptors(index)[0])


def test_a_step_may_take_so_long_and_what_is_slower_longer(clock):
    processes = [Process(), Process()]
    with Watchdog(2, 20.0) as dog:
        found, minutes = looks(dog, processes, clock, 90)
        assert (found, minutes) == ("process 0 has finished no step for 60 min (--stall=20)", 60)
        give(dog, 0, 1, 4, False)
        give(dog, 1, 1, 4, True)  # evaluates still
        found, minutes = looks(dog, processes, clock, 90)
        said = "process 0 has finished nothing after step 4 for 20 min (--stall=20)"
        assert found == said
        assert 20 <= minutes < 20.5
        give(dog, 0, 2, 4, True)
        found, minutes = looks(dog, processes, clock, 90)
        assert found == "process 1 has finished nothing after step 4 for 60 min (--stall=20)"
        assert 39 < minutes < 40.5
        assert dog.step() == 4
        processes[1].status = 0  # who has ended owes nothing
        assert looks(dog, processes, clock, 15)[0] == ""


def test_signs_keep_it_quiet_and_so_does_0(clock):
    with Watchdog(1, 10.0) as dog:
        for count in range(1, 9):
            give(dog, 0, count, 5, False)
            assert looks(dog, [Process()], clock, 9) == ("", 9)
        assert looks(dog, [Process()], clock, 2)[0]
    with Watchdog(1, 0.0) as dog:
        assert looks(dog, [Process()], clock, 1000) == ("", 1000)


def test_the_first_step_has_half_an_hour_at_least(clock):
    with Watchdog(1, 0.1) as dog:
        found, minutes = looks(dog, [Process()], clock, 90)
        assert (found, minutes) == ("process 0 has finished no step for 30 min (--stall=0.1)", 30)


def test_time_in_which_it_was_stopped_itself_does_not_count(clock):
    with Watchdog(1, 10.0) as dog:
        give(dog, 0, 1, 5, False)
        assert dog.stalled([Process()]) == ""
        clock[0] += 3600
        assert dog.stalled([Process()]) == ""
        assert 10 <= looks(dog, [Process()], clock, 60)[1] < 10.5


HANGS = """
import ctypes, os, signal, time
from train import heartbeat

heartbeat.begin()
heartbeat.finished(7)

def {}():
    {}

{}()
"""


def hanging(dog, name, code, index):
    return subprocess.Popen(
        [sys.executable, "-c", HANGS.format(name, code, name)],
        cwd=running.ROOT,
        env=os.environ | {heartbeat.VARIABLE: "{},{}".format(*dog.descriptors(index))},
        pass_fds=dog.descriptors(index),
        text=True,
    )


def test_who_hangs_is_asked_where_it_is_then_ended(tmp_path, capfd):
    """One holds Python's lock in C, one was stopped, one ends too late, one never began."""
    with Watchdog(3, 0.02) as dog:
        processes = [
            hanging(dog, "held", "while True: ctypes.PyDLL(None).sleep(60)", 0),
            hanging(dog, "halted", "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)", 1),
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True),
        ]
        status, reason = group.wait(processes, patience=1.0, grace=3.0, watchdog=dog)
        assert status == LOST
        assert reason.startswith("process ")
        assert "has finished nothing after step 7 for 0.02 min (--stall=0.02)" in reason
        assert reason.endswith("; process 1 was stopped by a signal")
        assert [process.poll() for process in processes] == [-signal.SIGTERM] * 3
        where = dog.keep(tmp_path)
    (folder,) = (tmp_path / watchdog.STACKS).iterdir()
    assert where == f"the stacks of its threads are above and in {folder}"
    said = capfd.readouterr().err
    for index, name in enumerate(("held", "halted")):
        text = (folder / f"process-{index}.txt").read_text()
        assert f"in {name}" in text
        assert all(f"process {index}: {line}" in said for line in text.splitlines())
    assert len(list(folder.iterdir())) == 2


def test_who_does_not_end_after_another_failed_is_asked_before_it_is_killed(tmp_path, capfd):
    with Watchdog(2) as dog:
        ignores = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        processes = [
            hanging(dog, "deaf", ignores, 0),
            subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"], text=True),
        ]
        running.wait_until(lambda: dog.step() == 7)
        assert group.wait(processes, patience=0.5, grace=1.0, watchdog=dog) == (3, "")
        assert processes[0].poll() == -signal.SIGKILL
        assert dog.keep(None) == "the stacks of its threads are above"
        assert list(dog.stacks) == [0]
    assert "in deaf" in capfd.readouterr().err
