"""The code that is sent: git's revision, what was changed since, and nothing that git ignores."""

import io
import json
import os
import subprocess
import tarfile

import pytest

from configs.errors import UserError
from launch.hosts import snapshot
from train.provenance import RECORD


def git(folder, *words):
    name = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", "-C", str(folder), *name, *words], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "cl one"
    (folder / "model").mkdir(parents=True)
    (folder / ".gitignore").write_text("runs/\n")
    (folder / "model" / "a.py").write_text("a = 1\n")
    (folder / "gone.py").write_text("")
    (folder / "run me").write_text("#!/bin/sh\n")
    os.chmod(folder / "run me", 0o755)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


def unpacked(taken, folder):
    with tarfile.open(fileobj=io.BytesIO(taken.packed)) as packed:
        packed.extractall(folder, filter="fully_trusted")
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def test_what_is_changed_or_new_goes_along_and_what_is_ignored_does_not(clone, tmp_path):
    before = snapshot.take(clone)
    (clone / "model" / "a.py").write_text("a = 2\n")
    (clone / "new $(x) 'é.py").write_text("b = 1\n")
    (clone / "gone.py").unlink()
    (clone / "link").symlink_to("model/a.py")
    (clone / "away").symlink_to("/no/such")
    (clone / "runs").mkdir()
    (clone / "runs" / "large").write_text("x")
    after = snapshot.take(clone)
    there = tmp_path / "there"
    names = {".gitignore", "model/a.py", "run me", "new $(x) 'é.py", "link", "away", RECORD}
    assert unpacked(after, there) == names
    assert (there / "model" / "a.py").read_text() == "a = 2\n"
    assert os.access(there / "run me", os.X_OK)
    assert os.readlink(there / "link") == "model/a.py"
    assert after.digest != before.digest
    assert before.diff == ""
    # The diff, applied to the revision, gives the same files.
    again = tmp_path / "again"
    subprocess.run(["git", "clone", "-q", str(clone), str(again)], check=True)
    kept = json.loads((there / RECORD).read_text())["diff"]
    subprocess.run(["git", "-C", str(again), "apply", "-"], input=kept, text=True, check=True)
    assert snapshot.take(again).digest == after.digest


def test_the_same_files_have_the_same_digest_and_any_other_another(clone):
    first = snapshot.take(clone)
    assert snapshot.take(clone).digest == first.digest
    os.chmod(clone / "model" / "a.py", 0o755)
    second = snapshot.take(clone)
    os.rename(clone / "run me", clone / "run")
    third = snapshot.take(clone)
    assert len({first.digest, second.digest, third.digest}) == 3


def test_a_copy_without_git_is_taken_without_its_environments(clone, tmp_path):
    files = set(snapshot.take(clone).files)
    (clone / ".git").rename(tmp_path / "git")
    for name in (".venv/x", ".venv-extras/x", "model/__pycache__/a.pyc", "runs/x", ".mypy_cache/x"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("")
    taken = snapshot.take(clone)
    assert set(taken.files) == files
    assert (taken.revision, taken.diff, taken.about()["changed"]) == (None, "", None)


def test_what_is_too_large_or_outside_is_refused(clone, monkeypatch, tmp_path):
    taken = snapshot.take(clone)
    assert taken.inside(str(clone / "model" / ".." / "model" / "a.py"), "--config") == "model/a.py"
    (clone / "runs").mkdir()
    (clone / "runs" / "c.py").write_text("")
    with pytest.raises(UserError, match="--config=.*c.py is ignored by git"):
        taken.inside(str(clone / "runs" / "c.py"), "--config")
    with pytest.raises(UserError, match="lies outside of"):
        taken.inside(str(tmp_path / "c.py"), "--config")
    monkeypatch.setattr(snapshot, "LARGEST", 10)
    with pytest.raises(UserError, match="MB that git does not ignore, too much"):
        snapshot.take(clone)
