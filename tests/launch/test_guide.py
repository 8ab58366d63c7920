"""Every command of the guide to launching, as a reader would try it: with --dry_run."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.train.processes import running

GUIDE = (running.ROOT / "docs" / "launch.md").read_text()
# Packages that a launcher needs even to show what it would do.
NEEDED = {"launch.slurm": "submitit", "launch.gke": "kubeflow_trainer_api"}
# What shows and changes nothing, and has nothing to try.
SHOWING = ("launch.status",)


def commands():
    """Returns the commands that the guide shows."""
    blocks = re.findall(r"(?:^    .*\n)+", GUIDE, re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines()]


def cases():
    for words in commands():
        module = words[2]
        if module in SHOWING:
            continue
        marks = [pytest.mark.extras] if module in NEEDED else []
        name = " ".join([module, *(word for word in words[3:5] if not word.startswith("--"))])
        yield pytest.param(words, marks=marks, id=name)


def test_the_guide_shows_a_command_for_every_launcher():
    shown = {words[2] for words in commands()}
    assert all(words[:2] == ["python", "-m"] for words in commands())
    assert shown >= {
        *("launch.local", "launch.ssh", "launch.tpu_vm", "launch.slurm", "launch.sky"),
        *("launch.gke", "launch.doctor"),
    }


@pytest.mark.parametrize("words", cases())
def test_each_shows_what_it_would_do_and_does_nothing(words, extra, tmp_path):
    if needed := NEEDED.get(words[2]):
        extra(needed)
    (tmp_path / "ssh").write_text("#!/bin/sh\necho hostname $3\n")  # only to read its config
    (tmp_path / "ssh").chmod(0o755)
    before = sorted(running.ROOT.glob("runs/*"))
    done = subprocess.run(
        [sys.executable, *words[1:], "--dry_run"],
        cwd=running.ROOT,
        env=running.environment() | {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert done.stdout
    assert sorted(running.ROOT.glob("runs/*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["ssh"]
