"""What a launcher is told to run, and that it says nothing of the environment's values."""

import json
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from launch import job
from launch.job import Job, Resources
from tests.train.processes import running

ODD = "a b'c\"d;e$(touch f)`g`\nh\\"


def test_the_flags_of_training_are_taken_and_no_others():
    words = ["--processes", "2", "--config=a.py", "--restarts=4", "--config.steps", "3"]
    assert job.of_training(words) == ["--config=a.py", "--config.steps=3"]
    own = ["--workdir", "stall", "-stall", "5", "--config", "b.py", "--config.log.tensorboard"]
    taken = ["--workdir=stall", "--config=b.py", "--config.log.tensorboard"]
    assert job.of_training([*own, "--env", "A=--config.x=1"]) == taken
    switched = ["--noconfig.log.tensorboard", "--hosts=a,b", "--config.seed", "-1"]
    assert job.of_training(switched) == ["--noconfig.log.tensorboard", "--config.seed=-1"]


@given(st.text(st.characters(exclude_characters="\0"), max_size=40))
def test_a_line_is_read_back_by_a_shell(text):
    described = Job("a.py", text, (f"--config.data.path={text}",), {"NAME": text + "secret"})
    words = shlex.split(described.line())
    assert words[1:] == ["python", "-m", "train", *described.arguments()]
    assert words[0] == "NAME=***"
    for shown in (described.line(), repr(described), json.dumps(described.about())):
        assert text + "secret" not in shown


def test_the_environment_is_given_or_taken_from_here():
    found = job.environment(["A=1=2", "B", f"C={ODD}", "A=3"], dict(B="here"))
    assert found == dict(A="3", B="here", C=ODD)
    for word, said in (("1A=x", "letters, digits"), ("=x", "letters"), ("D", "it is not set")):
        with pytest.raises(UserError, match=said):
            job.environment([word], {})
    with pytest.raises(UserError, match="zero byte") as error:
        job.environment(["A=secret\0"], {})
    assert "secret" not in str(error.value)


def test_so_many_processes():
    assert Resources(hosts=3, processes=2).total == 6


def test_a_dry_run_shows_the_commands_and_does_nothing(tmp_path):
    folder = tmp_path / "r u'n"
    words = [f"--workdir={folder}", "--env=TOKEN=secret", "--processes=2", "--dry_run"]
    path = f"--config.data.path={ODD}"
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--config=configs/toy.py", path, *words],
        cwd=running.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "secret" not in done.stdout
    assert not folder.exists()
    shown = shlex.split(done.stdout)
    taken = ["--config=configs/toy.py", path, f"--workdir={folder}", "--num_processes=2"]
    place = ["--coordinator=localhost:PORT", "--process_id=0"]
    assert shown[: len(shown) // 2] == [
        *("TOKEN=***", sys.executable, "-m", "train", *taken, *place)
    ]
