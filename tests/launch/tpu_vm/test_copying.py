"""What runs on a TPU VM's workers, on a stand-in of their shell."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from configs.errors import UserError
from launch.tpu_vm import copying


def test_run_copies_installs_and_starts():
    pack, copy, install, start = copying.run_commands(
        "heads", "us-west4-a", "python -m train --x='a b'", "/tmp/code.tar.gz", project="my-project"
    )
    assert pack[0] == "tar"
    everywhere = ["--zone=us-west4-a", "--project=my-project", "--worker=all"]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy == [*tpu, "scp", "/tmp/code.tar.gz", "heads:manyheads.tar.gz", *everywhere]
    assert install[:-1] == [*tpu, "ssh", "heads", *everywhere]
    assert "-c requirements.lock -e '.[tpu]'" in install[-1]
    assert start == [
        *(*tpu, "ssh", "heads", *everywhere),
        "--command=cd manyheads && . .venv/bin/activate && {\npython -m train --x='a b'\n}",
    ]


def test_run_needs_a_command():
    with pytest.raises(UserError, match="--command is missing"):
        copying.run_commands("heads", "us-west4-a", " ", "a.tar.gz")


@pytest.mark.parametrize("detach", [False, True])
def test_remote_lines_are_shell(detach: bool):
    commands = copying.run_commands(
        "heads", "us-west4-a", "echo 'it''s' \"$HOME\"", "a.tar.gz", detach=detach
    )
    for argv in commands[2:]:
        line = argv[-1].removeprefix("--command=")
        checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_a_line_of_two_commands_runs_whole_or_not_at_all(tmp_path: Path):
    (*_, last) = copying.run_commands("a", "us-west4-a", "echo one; echo two # three", "a.tar.gz")
    line = last[-1].removeprefix("--command=")
    activate = tmp_path / "manyheads" / ".venv" / "bin" / "activate"

    def said() -> str:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=False)
        return done.stdout.decode()

    assert said() == ""
    activate.parent.mkdir(parents=True)
    activate.write_text("")
    assert said() == "one\ntwo\n"


def test_archive_holds_the_code_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clone = tmp_path / "clone"
    kept = ["setup.cfg", "model/a.py", "tests/runs/a.py", ".ci/run"]
    left = [
        ".git/config",
        ".venv-newest/x",
        "runs/toy/x",
        "model/__pycache__/a.pyc",
        ".mypy_cache/x",
    ]
    for name in kept + left:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("")
    monkeypatch.setattr(copying, "ROOT", clone)
    archive = tmp_path / "code.tar.gz"
    subprocess.run(copying.run_commands("a", "us-west4-a", "true", str(archive))[0], check=True)
    with tarfile.open(archive) as packed:
        names = {member.name.removeprefix("./") for member in packed if member.isfile()}
    assert names == set(kept)
