"""Where a process is, and that none is taken for another that has its number."""

import os
import signal
import subprocess
import sys

import pytest

from tests.train.processes import running
from train.processes import whereabouts
from train.processes.whereabouts import here, is_dead, is_here, is_stopped, started


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def of(process):
    return here() | dict(pid=process.pid, started=started(process.pid))


def test_a_process_lives_until_it_has_ended(child):
    about = of(child)
    assert is_here(about)
    assert not is_dead(about)
    assert not is_dead(here())
    child.kill()
    # A zombie, which nobody has asked yet how it ended, has ended.
    running.wait_until(lambda: is_dead(about), 10)
    child.wait()
    assert is_dead(about)


def test_a_number_that_was_given_again_is_another_process(child):
    about = of(child)
    assert is_dead(about | dict(started=about["started"] - 1))
    about.pop("started")  # as older folders have it
    assert not is_dead(about)


@pytest.mark.parametrize("name", ["host", "boot", "pid_space"])
def test_of_another_system_no_process_is_known_to_be_dead(name):
    about = here() | {"pid": 1 << 23, name: "another"}
    assert not is_here(about)
    assert not is_dead(about)
    assert is_dead(here() | dict(pid=1 << 23))


@pytest.mark.parametrize("pid", [None, "7", -1, 0, 2**31, 2**70, 1.5])
def test_what_is_no_number_of_a_process_is_asked_nothing(pid, monkeypatch):
    def kill(pid, number):
        raise AssertionError(pid)

    monkeypatch.setattr(os, "kill", kill)
    assert not is_dead(here() | dict(pid=pid))


def test_a_process_that_a_signal_stopped(child):
    assert not is_stopped(child.pid)
    child.send_signal(signal.SIGSTOP)
    running.wait_until(lambda: is_stopped(child.pid), 10)
    child.send_signal(signal.SIGCONT)
    running.wait_until(lambda: not is_stopped(child.pid), 10)


def test_a_name_that_looks_like_the_rest_does_not_mislead(tmp_path, monkeypatch):
    fields = " ".join(["T", *map(str, range(4, 22)), "12345", "23"])
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) R 1 2) {fields}\n")
    monkeypatch.setattr(whereabouts, "_PROC", tmp_path)
    assert started(7) == 12345
    assert is_stopped(7)
    assert started(8) is None
    assert not is_stopped(8)
    assert set(here()) == {"host", "pid"}
