"""One run at a time in a folder: a second is refused, and a dead one is not waited for."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from configs.errors import UserError
from tests.train import tiny
from train import holding
from train.holding import HOLDER, LOCK, Holding, Lease
from train.loop import train
from train.metrics import read
from train.processes.group import Processes


def hold(workdir):
    return Holding(workdir, Processes())


def test_a_second_run_is_refused_and_takes_nothing_away(tmp_path):
    quiet = Console(quiet=True)
    train(tiny.config({"steps": 4, "log.eval_batches": 1}), tmp_path, quiet)
    rows = read(tmp_path)
    with hold(tmp_path):
        said = (
            rf"is used by process {os.getpid()} on .*; wait for its end, stop it, or name another"
        )
        with pytest.raises(UserError, match=said):
            train(tiny.config({"steps": 9, "log.eval_batches": 1}), tmp_path, quiet)
        assert read(tmp_path) == rows
    assert not (tmp_path / HOLDER).exists()
    train(tiny.config({"steps": 5, "log.eval_batches": 1}), tmp_path, quiet)
    assert len(read(tmp_path)) == 5


def test_a_lock_that_was_deleted_is_taken_anew_unless_another_run_has_done_so(tmp_path):
    with hold(tmp_path) as first:
        (tmp_path / LOCK).unlink()
        first.check()
        with pytest.raises(UserError, match="is used by process"), hold(tmp_path):
            pass
        (tmp_path / LOCK).unlink()
        with hold(tmp_path), pytest.raises(UserError, match="is used by process"):
            first.check()


def test_a_disk_that_has_no_room_for_the_holder_is_held_by_the_lock(tmp_path, monkeypatch):
    def full(path, text):
        raise UserError(f"{path} cannot be written")

    monkeypatch.setattr(holding, "write_text", full)
    refused = pytest.raises(UserError, match="is used by another run")
    with hold(tmp_path), refused, hold(tmp_path):
        pass


@pytest.mark.parametrize("command", [None, 5, "words"])
def test_a_holder_that_cannot_be_read_is_named_as_far_as_it_can(tmp_path, command):
    with hold(tmp_path):
        about = json.loads((tmp_path / HOLDER).read_text()) | dict(command=command)
        (tmp_path / HOLDER).write_text(json.dumps(about))
        with pytest.raises(UserError, match=f"is used by process {os.getpid()}"), hold(tmp_path):
            pass


def test_a_killed_run_leaves_the_folder_free(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from train.holding import Holding;"
        "from train.processes.group import Processes;"
        "held = Holding(Path(sys.argv[1]), Processes()).__enter__(); print('held', flush=True);"
        "time.sleep(60)"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"is used by process {process.pid} on "),
            hold(tmp_path),
        ):
            pass
        process.kill()
    with hold(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()


@pytest.fixture
def quick(monkeypatch):
    """Has leases live in tenths of seconds."""
    for name, seconds in dict(BEAT=0.1, DEAD=2.5, SETTLED=0.1).items():
        monkeypatch.setattr(holding, name, seconds)


def test_a_lease_is_refused_while_its_holder_lives_and_taken_when_it_is_silent(tmp_path, quick):
    first, second = Lease(tmp_path), Lease(tmp_path)
    first.begin()
    with pytest.raises(UserError, match="is used by process"):
        second.begin()
    first._ended.set()  # it falls silent, without giving the lease back
    first._thread.join()
    began = time.monotonic()
    second.begin()
    assert time.monotonic() > began + 2
    second.end()
    assert not (tmp_path / HOLDER).exists()


@pytest.mark.parametrize("elsewhere", [None, "host", "boot", "pid_space"])
def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path, quick, elsewhere):
    """Of another machine or container, none can be known to be dead."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    about = holding._about() | dict(pid=process.pid, id="another")
    about |= {elsewhere: "another"} if elsewhere else {}
    (tmp_path / HOLDER).write_text(json.dumps(about))
    began = time.monotonic()
    lease = Lease(tmp_path)
    lease.begin()
    assert (time.monotonic() < began + 2) == (elsewhere is None)
    lease.end()


def test_who_has_lost_a_lease_is_told(tmp_path, quick):
    held = hold(tmp_path)
    held._lease = Lease(tmp_path)
    held._lease.begin()
    (tmp_path / HOLDER).write_text(json.dumps(holding._about() | dict(id="another")))
    held._lease._thread.join(5)
    with pytest.raises(UserError, match="is used by process .*this run ends without it"):
        held.check()
    held._lease.end()
    assert (tmp_path / HOLDER).exists()  # it is the other's


def test_of_two_that_come_at_once_not_both_have_the_lease(tmp_path, quick):
    leases, refused = [Lease(tmp_path) for _ in range(2)], []

    def begin(lease):
        try:
            lease.begin()
        except UserError:
            refused.append(lease)

    threads = [threading.Thread(target=begin, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused
    for lease in leases:
        if lease not in refused:
            lease.end()
