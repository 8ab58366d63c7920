"""The signs of life that a run gives, and its stacks wherever its main thread is."""

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from rich.console import Console

from tests.train import tiny
from train import heartbeat
from train.heartbeat import Sign
from train.loop import train


@pytest.fixture
def files(monkeypatch):
    """Files as a supervisor hands them over, and what is given through them."""
    with tempfile.TemporaryFile() as signs, tempfile.TemporaryFile() as stacks:
        Sign().write(signs.fileno())
        monkeypatch.setenv(heartbeat.VARIABLE, f"{signs.fileno()},{stacks.fileno()}")
        monkeypatch.setattr(heartbeat, "_file", -1)
        monkeypatch.setattr(heartbeat, "_sign", Sign())
        monkeypatch.setattr(heartbeat, "_stacks", None)
        yield signs.fileno(), stacks.fileno()
        faulthandler.unregister(signal.SIGUSR1)


def test_a_run_gives_a_sign_with_each_call_evaluation_and_save(files, tmp_path, monkeypatch):
    given, write = [], Sign.write

    def note(sign, file):
        write(sign, file)
        given.append((Sign.read(file).step, Sign.read(file).busy))

    monkeypatch.setattr(Sign, "write", note)
    heartbeat.begin()
    assert heartbeat.VARIABLE not in os.environ
    assert heartbeat.stacks() == files[1]
    fields = {"steps": 6, "steps_per_call": 2, "log.eval_every": 4, "log.eval_batches": 2}
    train(tiny.config(fields | {"checkpoint.every": 4}), tmp_path, Console(quiet=True))
    assert Sign.read(files[0]).count == len(given)
    steps = [step for step, busy in given if not busy]
    assert steps == [2, 4, 6]
    assert given[0] == (-1, True)  # until the first step, compilation
    first, last = given.index((4, False)), given.index((6, False))
    assert given[first + 1 : last].count((4, True)) >= 3  # a save, two batches
    assert all(sign == (6, True) for sign in given[last + 1 :])
    assert len(given) > last + 2


def test_without_a_supervisor_there_are_no_signs(monkeypatch):
    monkeypatch.delenv(heartbeat.VARIABLE, raising=False)
    heartbeat.begin()
    heartbeat.finished(3)
    heartbeat.busy()
    assert heartbeat._file == -1
    assert heartbeat._sign == Sign()
    assert heartbeat.stacks() is None
    assert (heartbeat.doing().what, heartbeat.doing().step) == (heartbeat.STARTING, 3)


def test_what_a_process_does_is_known_though_nobody_supervises_it():
    heartbeat.finished(3)
    assert (heartbeat.doing().what, heartbeat.doing().step) == (heartbeat.TRAINING, 3)
    before = heartbeat.doing().since
    heartbeat.busy(heartbeat.EVALUATING)
    assert (heartbeat.doing().what, heartbeat.doing().step) == (heartbeat.EVALUATING, 3)
    heartbeat.busy(heartbeat.RESTORING, 1)
    assert (heartbeat.doing().what, heartbeat.doing().step) == (heartbeat.RESTORING, 1)
    assert before <= heartbeat.doing().since <= time.monotonic()
    heartbeat.forget()
    assert (heartbeat.doing().what, heartbeat.doing().step) == (heartbeat.STARTING, None)


def test_a_disk_that_cannot_be_written_ends_nothing(files):
    heartbeat.begin()
    heartbeat._file = os.open(os.devnull, os.O_RDONLY)
    heartbeat.finished(3)
    os.close(heartbeat._file)


HELD = """
import ctypes, threading
from train import heartbeat

heartbeat.begin()
threading.Thread(target=threading.Event().wait, name="another", daemon=True).start()

def stuck():
    heartbeat.finished(7)
    ctypes.PyDLL(None).sleep(60)  # in C, and Python's lock with it

stuck()
"""


def test_stacks_are_written_though_the_main_thread_holds_python_in_c():
    with tempfile.TemporaryFile() as signs, tempfile.TemporaryFile() as stacks:
        given = signs.fileno(), stacks.fileno()
        Sign().write(given[0])
        process = subprocess.Popen(
            [sys.executable, "-c", HELD],
            env=os.environ | {heartbeat.VARIABLE: "{},{}".format(*given)},
            pass_fds=given,
        )
        try:
            until = time.monotonic() + 30
            while Sign.read(given[0]).step < 7 and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(signal.SIGUSR1)
            while b"<module>" not in (text := os.pread(given[1], 10**5, 0)):
                assert time.monotonic() < until, text
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    assert text.count(b"most recent call first") == 2
    assert b"in stuck" in text
