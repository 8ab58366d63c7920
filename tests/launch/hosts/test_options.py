"""What the flags say of a job on hosts, as a dry run shows it."""

import re
import subprocess
import sys

from tests.train.processes import running


def shown(*words):
    return subprocess.run(
        [sys.executable, "-m", "launch.ssh", "--hosts=a,b", "--config=configs/toy.py", *words],
        cwd=running.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_shows_how_the_environment_is_made():
    done = shown("--workdir=runs/x", "--extras=cuda,gs", "--python=python3.12", "--dry_run")
    assert (done.returncode, done.stderr) == (0, "")
    once = [line.strip() for line in done.stdout.splitlines() if "once, runs" in line]
    assert len(once) == 6
    assert once[0].startswith("once, runs python3.12 -m venv --clear")
    assert re.search(
        r"pip install .* -r '~/manyheads/code/[0-9a-f]{16}/requirements.lock'$", once[1]
    )
    assert re.search(r"-c .*requirements.lock' 'jax\[cuda13\]' 'gcsfs>=2025.3'$", once[2])
    assert re.search("~/manyheads/jobs/x-[0-9a-f]{8}$", done.stdout, re.MULTILINE)
    assert "--workdir=~/manyheads/runs/x" in done.stdout


def test_a_root_that_is_relative_lies_in_the_home_of_each_host():
    done = shown("--workdir=x", "--root=mine", "--interpreter=/p", "--dry_run")
    assert "writes ~/mine/code/" in done.stdout
    assert "--workdir=~/mine/x" in done.stdout
    assert "  runs in /p\n" in done.stdout


def test_an_extra_that_is_none_is_refused():
    done = shown("--workdir=x", "--extras=cud", "--dry_run")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --extras=cud is none of setup.cfg's (did you mean 'cuda'?); see its "
        "extras_require.\n"
    )
