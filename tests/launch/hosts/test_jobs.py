"""A host's jobs: whose processes live, what is left of them, and that no others are touched."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from launch.hosts.call import Call
from launch.hosts.remote import jobs, places, wire
from tests.launch.hosts.local import HERE
from tests.train.processes import running

HOLD = """
import fcntl, signal, sys, time
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "jobs" / "one" / socket.gethostname()
    made.mkdir(parents=True)
    return made


@pytest.fixture
def hold(folder):
    """Starts processes that hold the job's lock, each as the last one's agent."""
    started = []

    def start(*words, **state):
        lock = str(folder / places.LOCK)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, lock, *words], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        places.write_json(
            str(folder / places.STATE), dict(attempt="1", state="running", pid=process.pid) | state
        )
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_job_lives_as_long_as_its_lock(folder, hold):
    assert jobs.current(str(folder)) == {}
    process = hold()
    assert jobs.current(str(folder))["state"] == "running"
    process.kill()
    process.wait()
    state = jobs.current(str(folder))
    assert (state["state"], state["status"]) == ("ended", 128 + signal.SIGKILL)
    assert state["reason"] == "its agent was killed on the host"
    places.write_json(str(folder / places.STATE), dict(attempt="1", state="ended", status=3))
    ended = dict(attempt="1", state="ended", status=3, wanted=False)
    assert jobs.current(str(folder)) == ended
    places.write_json(str(folder / places.WANTED), dict(attempt="1"))
    assert jobs.current(str(folder)) == ended | dict(wanted=True)
    places.write_json(str(folder / places.WANTED), dict(attempt="0"))
    assert jobs.current(str(folder)) == ended
    (folder / places.STATE).write_text('{"attempt": 1, "sta')
    assert jobs.current(str(folder)) == {}


@pytest.mark.parametrize("kill", [False, True])
def test_a_stop_reaches_the_agent_and_nobody_who_has_its_number_now(folder, hold, tmp_path, kill):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = hold(pids=[other.pid])
    request = dict(root=str(tmp_path), name="one", kill=kill, wanted=True)
    assert jobs.stop(request) == dict(ran=True)
    assert process.wait(10) == (-signal.SIGKILL if kill else -signal.SIGTERM)
    places.write_json(str(folder / places.STATE), dict(state="running", pid=other.pid))
    assert jobs.stop(request) == dict(ran=False)
    jobs.signal_all(str(folder), signal.SIGKILL)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_is_left_of_an_earlier_attempt_is_ended_before_the_next(folder, hold, monkeypatch):
    monkeypatch.setattr(jobs, "ASKING", 0.5)
    monkeypatch.setattr(jobs, "KILLING", 5.0)
    process = hold("stubborn")
    with open(folder / places.LOCK, "a") as lock:
        jobs._take(lock.fileno(), str(folder), "1")
        assert process.wait(1) == -signal.SIGKILL
        assert jobs.is_held(str(folder))
    assert not jobs.is_held(str(folder))


def test_one_that_cannot_be_ended_is_said(folder, hold, monkeypatch):
    monkeypatch.setattr(jobs, "ASKING", 0.2)
    monkeypatch.setattr(jobs, "KILLING", 0.2)
    hold(pid=1 << 22)  # another holds it, which nobody knows
    with (
        open(folder / places.LOCK, "a") as lock,
        pytest.raises(wire.Refused, match=f"process {1 << 22} and those that it started"),
    ):
        jobs._take(lock.fileno(), str(folder), "1")


def request(tmp_path, **agent):
    return dict(
        action="start",
        root=str(tmp_path),
        name="one",
        attempt="3",
        known="",
        code=str(running.ROOT),
        python=sys.executable,
        cwd=str(running.ROOT),
        job=dict(config="a.py"),
        agent=dict(share=dict(count=1), workdir="", stall=0, **agent),
    )


def test_nothing_is_started_where_the_launcher_goes_before_all_are_ready(tmp_path):
    with Call(HERE, "jobs", **request(tmp_path)) as call:
        assert next(call.messages(30)) == dict(ready=True)
    time.sleep(0.5)
    assert not jobs.is_held(str(tmp_path / "jobs" / "one" / socket.gethostname()))
    assert not (tmp_path / "jobs" / "one" / socket.gethostname() / places.STATE).exists()


def test_an_agent_runs_on_without_its_launcher_and_leaves_no_secret(tmp_path):
    words = ["--config=configs/no-such.py", f"--workdir={tmp_path}/run"]
    secret = dict(TOKEN="very secret")
    with Call(HERE, "jobs", **request(tmp_path, arguments=words, environment=secret)) as call:
        next(call.messages(30))
        call.send(go=True)
        pid = call.answer(30)["pid"]
    folder = tmp_path / "jobs" / "one" / socket.gethostname()
    assert os.getsid(pid) == pid
    running.wait_until(lambda: jobs.current(str(folder)).get("state") == "ended")
    state = jobs.current(str(folder))
    assert (state["attempt"], state["status"], state["step"]) == ("3", 2, -1)
    assert "no-such.py' is not a file" in (folder / "3.log").read_text()
    assert json.loads((folder / places.JOB).read_text()) == dict(config="a.py")
    assert (folder.stat().st_mode & 0o077) == 0
    for path in folder.iterdir():
        assert "very secret" not in path.read_text()
    listed = jobs.look(dict(root=str(tmp_path)))
    assert listed["jobs"]["one"]["job"] == dict(config="a.py")
