"""What a job says, and how it ended, from files and replies like SLURM's."""

import subprocess
import sys

import pytest

from launch.slurm import states, watching
from tests.train.processes import running


@pytest.fixture
def reply(tmp_path, monkeypatch):
    """Makes commands that print a text and exit with a status."""

    def make(name, text, status=0):
        path = tmp_path / name
        (tmp_path / f"{name}.said").write_text(text)
        path.write_text(
            f'#!/bin/sh\nwhile read -r l; do echo "$l"; done < {path}.said\nexit {status}\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}")

    return make


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COMPLETED|0:0\n", ("COMPLETED", 0)),
        ("FAILED|2:0\n", ("FAILED", 2)),
        ("CANCELLED by 1000|0:0\n", ("CANCELLED", 1)),
        ("TIMEOUT|0:0\n", ("TIMEOUT", 1)),
        ("OUT_OF_MEMORY|0:125\n", ("OUT_OF_MEMORY", 253)),
        ("FAILED|0:9\n", ("FAILED", 137)),
        ("REQUEUED|0:0\nRUNNING|0:0\n", ("RUNNING", 1)),
        ("", ("", 1)),
        ("nonsense\n", ("", 1)),
    ],
)
def test_accounts_are_read(reply, text, expected):
    reply("sacct", text)
    assert states.ending("7") == expected


def test_without_slurm_or_with_an_error_nothing_is_known(reply, tmp_path):
    reply("sacct", "COMPLETED|0:0\n", status=1)
    assert states.ending("7") == ("", 1)
    assert states.job_state("7") == ""  # there is no squeue
    reply("squeue", "RUNNING\n")
    assert states.job_state("7") == "RUNNING"
    reply("squeue", "RUNNING\n", status=1)
    assert states.job_state("7") == ""


def test_a_job_without_accounts_is_given_up_and_one_that_ended_says_how(
    reply, tmp_path, capsys, monkeypatch
):
    reply("squeue", "", status=1)
    reply("sacct", "")
    assert watching.follow("7", tmp_path, 0.01) == 1
    assert "SLURM knows no job 7 any more" in capsys.readouterr().err
    reply("sacct", "TIMEOUT|0:0\n")
    (tmp_path / "7_0_log.out").write_text("step 1\nstep 2")
    (tmp_path / "7_1_log.err").write_text("warned\n")
    (tmp_path / "71_0_log.out").write_text("of another\n")
    assert watching.follow("7", tmp_path, 0.01) == 1
    said = capsys.readouterr()
    assert said.out == "step 1\nstep 2\n"
    assert said.err == (
        "process 1: warned\nerror: job 7 ended as TIMEOUT with exit status 1; the same command "
        "goes on from what was saved.\n"
    )


def test_lines_are_shown_once_and_when_they_are_whole(tmp_path, capsys):
    logs, path = watching.Logs(tmp_path, "7"), tmp_path / "7_0_log.out"
    logs.show()
    path.write_bytes("one\nt\xc3".encode("latin-1"))
    logs.show()
    assert capsys.readouterr().out == "one\n"
    path.write_bytes("one\nt\xc3\xa9\nthree".encode("latin-1"))
    logs.show()
    assert capsys.readouterr().out == "té\n"
    logs.show(last=True)
    logs.show(last=True)
    assert capsys.readouterr().out == "three\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attach=x;y", "--workdir=w"], "--attach=x;y is no job's id"),
        (["--attach=7"], "--logs is missing"),
        (["--attach=7", "--workdir=gs://bucket/run"], "--logs is missing"),
    ],
)
def test_what_cannot_be_attached_to_is_one_sentence(words, said):
    done = subprocess.run(
        [sys.executable, "-m", "launch.slurm", *words],
        cwd=running.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
