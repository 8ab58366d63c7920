"""Names of folders that a command is given."""

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.folders import folder, run_folder, user_state


def test_a_folder_need_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folder("~/runs", "--workdir") == folder("runs", "--workdir") == tmp_path / "runs"
    (tmp_path / "file").touch()
    assert folder("file/run", "--workdir") == Path(tmp_path / "file" / "run")


def test_a_folder_may_be_written_as_an_address():
    assert run_folder("file:///tmp/runs/toy", "--workdir") == Path("/tmp/runs/toy")


def test_a_relative_name_in_a_folder_that_is_gone_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="--workdir=run cannot be used .*No such file"):
        folder("run", "--workdir")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 300, "File name too long"),
        ("~nobody-of-this-name/run", "home directory"),
        ("a\0b", "null (byte|character)"),
        ("gs://bucket/run", "is not a folder of this machine"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(name, reason):
    with pytest.raises(UserError, match=f"--workdir={name}.*{reason}"):
        folder(name, "--workdir")


def test_the_state_folder_is_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert user_state() == tmp_path / ".local" / "state" / "manyheads"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    assert user_state() == tmp_path / "elsewhere" / "manyheads"
