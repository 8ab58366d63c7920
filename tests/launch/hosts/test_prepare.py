"""Code and environment of a host: made once, whole or not at all, and what is missing is said."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from launch.hosts import snapshot
from launch.hosts.call import Call, Unreachable
from launch.hosts.remote import places, prepare
from tests.launch.hosts.local import HERE


def asked(tmp_path, taken, **more):
    request = dict(
        root=str(tmp_path / "ro ot"),
        code=taken.digest,
        interpreter="",
        python="",
        extras=[],
        auto=False,
    )
    said = []
    with Call(HERE, "prepare", **(request | more)) as call:

        def heard(message):
            said.append(message)
            if message.get("need") == "code":
                call.send_bytes(taken.packed)

        return call.answer(120, heard), said


@pytest.fixture
def taken(tmp_path):
    """Returns code with a lock of nothing, so that an environment is made in seconds."""
    folder = tmp_path / "code"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b.py").write_text("b = 1\n")
    (folder / "requirements.lock").write_text("# nothing\n")
    (folder / "setup.cfg").write_text("[options.extras_require]\ntpu =\n    jax[tpu]\n    x>=1\n")
    return snapshot.take(folder)


def test_code_comes_once_and_as_it_is(tmp_path, taken):
    first, said = asked(tmp_path, taken, interpreter=sys.executable)
    assert said == [dict(need="code")]
    assert first["made"] == ["code"]
    there = Path(first["code"])
    assert (there / "a" / "b.py").read_text() == "b = 1\n"
    assert (there / places.PYTHON).read_text() == sys.executable
    second, said = asked(tmp_path, taken, interpreter=sys.executable)
    assert (said, second["made"], second["code"]) == ([], [], first["code"])
    # One that was cut off is made anew.
    (there / prepare.WHOLE).unlink()
    (there / "a" / "b.py").unlink()
    third, _ = asked(tmp_path, taken, interpreter=sys.executable)
    assert third["made"] == ["code"]
    assert (there / "a" / "b.py").read_text() == "b = 1\n"
    assert not list(there.parent.glob(".part-*"))


def test_an_environment_is_made_once_for_each_lock(tmp_path, taken):
    first, said = asked(tmp_path, taken)
    assert first["made"] == ["code", "environment"]
    assert ["makes an environment" in message.get("say", "") for message in said] == [False, True]
    version = [first["python"], "-c", "import sys; print(sys.prefix != sys.base_prefix)"]
    assert subprocess.run(version, capture_output=True, text=True).stdout == "True\n"
    second, _ = asked(tmp_path, taken)
    assert (second["made"], second["python"]) == ([], first["python"])
    (taken.root / "requirements.lock").write_text("# something else\n")
    other = snapshot.take(taken.root)
    third, _ = asked(tmp_path, other)
    assert third["made"] == ["code", "environment"]
    assert third["python"] != first["python"]
    # One that was cut off is made anew.
    folder = Path(third["python"]).parents[1]
    (folder / prepare.WHOLE).unlink()
    (folder / "left").touch()
    fourth, _ = asked(tmp_path, other)
    assert fourth["made"] == ["environment"]
    assert not (folder / "left").exists()


def test_what_cannot_be_installed_is_said_with_the_reason(tmp_path, taken):
    (taken.root / "requirements.lock").write_text("./no-such-package\n")
    with pytest.raises(UserError, match="here: its environment could not be made"):
        asked(tmp_path, snapshot.take(taken.root))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (dict(interpreter="/no/such/python"), "cannot be run .No such file or directory.; name"),
        (
            dict(interpreter="/bin/false"),
            "--interpreter=/bin/false lacks packages .it says nothing",
        ),
        (dict(python="no-such-python"), "it has no Python 3.11 or newer .none was found."),
        (dict(extras=["tpu"]), "environment could not be made"),
    ],
)
def test_what_a_host_lacks_is_said(tmp_path, taken, given, reason):
    with pytest.raises(UserError, match=reason):
        asked(tmp_path, taken, **given)


def test_an_older_python_is_passed_over(tmp_path, monkeypatch):
    old = tmp_path / "python3.11"
    old.write_text("#!/bin/sh\necho 3 8 10 /usr/bin/python3.8\n")
    old.chmod(0o755)
    new = tmp_path / "python3.13"
    new.write_text("#!/bin/sh\necho 3 13 1 /usr/bin/python3.13\n")
    new.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(prepare, "_PYTHONS", ("python3.11", "python3.13"))
    assert prepare._python("") == (shutil.which("python3.13"), "Python 3.13.1")


def test_an_archive_that_does_not_come_whole_leaves_nothing(tmp_path, taken):
    request = dict(root=str(tmp_path / "r"), code="x", interpreter="", python="", extras=[])
    with Call(HERE, "prepare", auto=False, **request) as call:
        assert next(call.messages(30)) == dict(need="code")
        call.send(bytes=100)
        call._process.stdin.write(b"short")
        call._process.stdin.close()
        with pytest.raises(Unreachable):
            call.answer(30)
    assert not (tmp_path / "r").exists()


def test_the_extras_are_those_of_setup_cfg(taken):
    assert prepare.requirements(str(taken.root), ["tpu"]) == ["jax[tpu]", "x>=1"]
    assert dataclasses.asdict(taken)["files"]
