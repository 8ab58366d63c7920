"""Conversations with a host: what is sent arrives, and who has gone is noticed."""

import ast
import fcntl
import functools
import os
import signal
import socket
from pathlib import Path

import pytest

from configs.errors import UserError
from launch.hosts import call
from launch.hosts.call import Call, Unreachable, ask
from launch.hosts.host import COMMAND, Host
from tests.launch.hosts.local import HERE
from tests.train.processes import running

ODD = "a b'c\"d;e$(touch f)`g`\nh\\ \x7f é"


def of(words):
    return Host("b", "b", ("sh", "-c", words))


def test_a_request_arrives_as_it_was_given(tmp_path):
    root = tmp_path / ODD
    folder = root / "jobs" / ODD / socket.gethostname()
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"attempt": "3"}')
    assert ask(HERE, "jobs", 30, action="look", root=str(root), name=ODD) == dict(
        jobs={ODD: dict(state=dict(attempt="3"), job={})}
    )


def test_each_program_imports_nothing_but_the_standard_library_and_its_own(tmp_path):
    # -S and -I: no packages, and none of this project.
    alone = of(COMMAND.replace("python3", "python3 -S -I"))
    for module in ("jobs", "follow", "prepare", "probe", "collect"):
        with Call(alone, module, action="look", act="time", root=str(tmp_path)) as started:
            if module == "probe":
                assert "time" in next(started.messages(30))["found"]
            elif module == "jobs":
                assert started.answer(30) == dict(jobs={})
            else:
                with pytest.raises(Unreachable, match="KeyError"):
                    started.answer(30)


def test_the_programs_are_of_a_python_that_hosts_have():
    for module in ("jobs", "follow", "prepare", "probe", "collect"):
        ast.parse(call.program(module), feature_version=(3, 8))
    for path in Path(call.__file__).parent.glob("remote/*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


def test_what_a_login_shell_says_besides_is_passed_over(tmp_path):
    said = """printf '{"done": {"jobs": 1}}'; echo; echo '[1]'; echo '{'; printf 'welcome '"""
    noisy = of(f"{said}; {COMMAND}")
    assert ask(noisy, "jobs", 30, action="look", root=str(tmp_path)) == dict(jobs={})


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("echo one >&2; echo 'ssh: connect: No route to host' >&2; exit 255", "No route to host"),
        ("echo 'closed for repairs.'; exit 3", "closed for repairs"),
        ("exit 255", "the connection has ended with status 255"),
        ("exec sleep 60", "it says nothing for 0.5 s"),
    ],
)
def test_who_cannot_be_reached_is_told_with_the_reason(words, reason):
    with pytest.raises(Unreachable, match=reason) as error:
        ask(of(words), "jobs", 0.5 if "sleep" in words else 30, action="look", root="/x")
    assert error.value.host.name == "b"


def test_a_refusal_is_the_hosts_sentence(tmp_path):
    (tmp_path / "jobs").write_text("")
    with pytest.raises(UserError, match="here: Not a directory .*jobs/one"):
        ask(HERE, "jobs", 30, action="start", root=str(tmp_path), name="one")


def test_a_program_that_is_missing_is_a_sentence():
    with pytest.raises(UserError, match="no-such-program is not found; install it"):
        ask(Host("b", "b", ("no-such-program",)), "jobs")


def test_bytes_go_both_ways(tmp_path):
    data = bytes(range(256)) * 1000
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_bytes(data)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "x").write_bytes(b"")
    request = dict(root=str(tmp_path), folder="run", all=False)
    with Call(HERE, "collect", **request) as asked:
        messages = list(asked.messages(30))
    assert messages[-1] == dict(done=dict(files=1))
    assert all(isinstance(message["data"], bytes) for message in messages[:-1])


def test_a_launcher_that_goes_ends_what_it_has_started_there(tmp_path):
    folder = tmp_path / "jobs" / "one" / socket.gethostname()
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"attempt": "1", "state": "running"}')
    lock = open(folder / "lock", "w")  # noqa: SIM115 -- held while the job "runs"
    fcntl.flock(lock, fcntl.LOCK_EX)
    asked = Call(HERE, "follow", root=str(tmp_path), name="one", attempt="1", offset=0)
    assert next(asked.messages(30))["state"]["state"] == "running"
    pid = asked._process.pid
    children = functools.partial(_children, pid)
    started = [pid, *children()]
    os.kill(pid, signal.SIGKILL)
    running.wait_until(lambda: not any(_lives(one) for one in started[1:]), 20)
    asked.close()
    lock.close()


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def _lives(pid):
    return os.path.exists(f"/proc/{pid}")
