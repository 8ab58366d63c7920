"""The stacks of processes here: asked only of those that listen, and of nobody to his harm."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.status import stacks
from launch.status.found import Process
from launch.watchdog import Watchdog
from tests.launch.status.workdirs import ELSEWHERE
from tests.train.processes import running
from train import heartbeat
from train.processes.whereabouts import here, started

LISTENS = """
import time
from train import heartbeat

heartbeat.begin()
heartbeat.finished(7)

def {}():
    time.sleep(60)

{}()
"""
PYTHON = sys.executable
DEAF = "print(flush=True); input()"
CATCHES = "import signal, time; signal.signal(signal.SIGUSR1, print); print(flush=True); input()"


def process(pid, descriptor=None, **more):
    about = here() | dict(pid=pid, started=started(pid)) | more
    return Process(0, about, about["host"], descriptor, 0.1)


@pytest.fixture
def start(tmp_path):
    """Starts Python with some code, and waits until it has said a line; errors go to a file."""
    begun = []

    def start(code):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        begun.append(subprocess.Popen([PYTHON, "-c", code], **pipes))
        begun[-1].stdout.readline()
        return begun[-1]

    with open(tmp_path / "errors", "wb") as errors:
        yield start
        for one in begun:
            one.kill()
            one.communicate()


@pytest.fixture
def no_py_spy(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


def listening(dog, name, index=0):
    return subprocess.Popen(
        [PYTHON, "-c", LISTENS.format(name, name)],
        cwd=running.ROOT,
        env=os.environ | {heartbeat.VARIABLE: "{},{}".format(*dog.descriptors(index))},
        pass_fds=dog.descriptors(index),
    )


def test_who_listens_writes_its_stacks_each_time_and_a_hang_has_its_own():
    with Watchdog(1) as dog, listening(dog, "here_it_is") as child:
        running.wait_until(lambda: dog.step() == 7)
        about = process(child.pid, dog.descriptors(0)[1])
        for _ in range(2):
            said = stacks.of(about)
            assert said.count("in here_it_is") == 1, "what was asked for before is not shown again"
        assert child.poll() is None
        dog.ask([child])
        assert dog.stacks[0].count("in here_it_is") == 1, "of others' questions it holds nothing"
        child.kill()


def test_a_process_that_does_not_listen_is_sent_nothing(start, no_py_spy):
    deaf, catches = start(DEAF), start(CATCHES)
    told = "does not listen, as nobody supervises it; install py-spy"
    for about in (process(deaf.pid, 2), process(deaf.pid), process(catches.pid)):
        with pytest.raises(stacks.Unknown, match=told):
            stacks.of(about)
    # It catches the signal, but has no file that could be its own.
    with pytest.raises(stacks.Unknown, match=told):
        stacks.of(process(catches.pid, 0))
    with pytest.raises(stacks.Unknown, match=told):
        stacks.of(process(catches.pid, 99))
    for one in (deaf, catches):
        assert one.communicate(b"\n")[0] == b"", "no signal came"
        assert one.returncode == 0


def test_catches_is_what_the_system_says(start):
    deaf, catches = start(DEAF), start(CATCHES)
    ignores = start(CATCHES.replace("print)", "signal.SIG_IGN)"))
    assert [stacks.catches(p.pid, signal.SIGUSR1) for p in (deaf, catches, ignores)] == [
        False,
        True,
        False,
    ]
    assert not stacks.catches(catches.pid, signal.SIGUSR2)
    assert not stacks.catches(1 << 23, signal.SIGUSR1)


def test_who_has_ended_or_is_another_or_elsewhere_is_said_to_be(start):
    child = start(CATCHES)
    for about, told in (
        (process(child.pid, 1, started=started(child.pid) - 1), "has ended"),
        (process(1 << 23, 1), "has ended"),
        (Process(3, ELSEWHERE, "hostb", 1, 0.1), "runs elsewhere; give the same command there"),
        (Process(4, {}), "runs elsewhere"),
    ):
        with pytest.raises(stacks.Unknown, match=told):
            stacks.of(about)
    assert child.communicate(b"\n")[0] == b""


def test_who_was_stopped_by_a_signal_stays_so(no_py_spy):
    with Watchdog(1) as dog, listening(dog, "here_it_is") as child:
        running.wait_until(lambda: dog.step() == 7)
        child.send_signal(signal.SIGSTOP)
        about = process(child.pid, dog.descriptors(0)[1])
        running.wait_until(lambda: stacks.is_stopped(child.pid))
        told = rf"was stopped by a signal; let it go on \(kill -CONT {child.pid}\)"
        with pytest.raises(stacks.Unknown, match=told):
            stacks.of(about)
        assert stacks.is_stopped(child.pid)
        child.kill()


def spy(folder, body, monkeypatch):
    """Puts a program in py-spy's place."""
    program = folder / "py-spy"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


def test_py_spy_looks_into_who_does_not_listen(start, tmp_path, monkeypatch):
    child = start(DEAF)
    spy(tmp_path, 'echo "$@"', monkeypatch)
    assert stacks.of(process(child.pid)) == f"dump --pid {child.pid}\n"
    child.send_signal(signal.SIGSTOP)
    running.wait_until(lambda: stacks.is_stopped(child.pid))
    assert stacks.of(process(child.pid)) == f"dump --pid {child.pid} --nonblocking\n"
    child.send_signal(signal.SIGCONT)
    spy(tmp_path, 'echo "Permission Denied: try sudo" >&2; exit 1', monkeypatch)
    with pytest.raises(stacks.Unknown, match=r"cannot look into it \(Permission Denied: try sudo"):
        stacks.of(process(child.pid))
    monkeypatch.setattr(stacks, "SPYING", 0.2)
    spy(tmp_path, "exec sleep 60", monkeypatch)
    began = time.monotonic()
    with pytest.raises(stacks.Unknown, match="it said nothing"):
        stacks.of(process(child.pid))
    assert time.monotonic() < began + 10


@pytest.mark.extras
def test_the_real_py_spy_names_the_function(start):
    there = shutil.which("py-spy") or Path(PYTHON).with_name("py-spy").exists()
    if not there and os.environ.get("MANYHEADS_EXTRAS") != "required":
        pytest.skip("needs py-spy; see the extras of setup.cfg")
    child = start("def here_it_is():\n  print(flush=True)\n  input()\nhere_it_is()")
    assert "here_it_is" in stacks.of(process(child.pid))
