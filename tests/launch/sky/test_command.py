"""The command, with SkyPilot itself as what reads the task, and a stub as what starts it."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.sky import task
from tests.launch.sky import test_task
from tests.train.processes import running

CONFIG = ["--config=configs/gpt3.py:125m", "--name=heads"]
TPU = [*CONFIG, "--accelerator=tpu-v5litepod-8", "--workdir=gs://bucket/a b;'$(touch x)"]


@pytest.fixture
def sky():
    """Returns SkyPilot's command: ``$MANYHEADS_SKY``, or that in PATH."""
    found = shutil.which(os.environ.get("MANYHEADS_SKY", "sky"))
    if found is None and os.environ.get("MANYHEADS_EXTRAS") != "required":
        pytest.skip("needs SkyPilot's command in PATH or MANYHEADS_SKY; see setup.cfg")
    assert found, "MANYHEADS_SKY or PATH has to have SkyPilot"
    return Path(os.path.realpath(found))


def called(*words, **variables):
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "launch.sky", *words],
        cwd=running.ROOT,
        env=running.environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def stand_in(folder, sky):
    """Makes a command beside SkyPilot's Python that keeps what it is given."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sky.parent / "python"} "$@"\n')
    # The task's file is gone afterwards.
    (folder / "bin" / "sky").write_text(
        f"#!{sys.executable}\nimport json, os, pathlib, shutil, sys\n"
        f"here = pathlib.Path({str(folder)!r})\n"
        "shutil.copy(sys.argv[-1], here / 'task.yaml')\n"
        "told = dict(words=sys.argv[1:], cwd=os.getcwd(), token=os.environ.get('TOKEN'))\n"
        "(here / 'told').write_text(json.dumps(told))\nsys.exit(7)\n"
    )
    for name in ("python", "sky"):
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin" / "sky"


@pytest.mark.extras
def test_skypilot_reads_the_task_and_is_given_it(sky, tmp_path):
    stub = stand_in(tmp_path, sky)
    secret = "s3cr3t\n$(touch y)"
    for more, start in (
        (["--spot"], ["jobs", "launch", "--yes", "--name=heads"]),
        (
            ["--idle_minutes=3"],
            ["launch", "--yes", "--cluster=heads", "--idle-minutes-to-autostop=3", "--down"],
        ),
    ):
        words = [*TPU, *more, "--env=TOKEN", f"--sky={stub}"]
        done = called(*words, TOKEN=secret, HOME=str(tmp_path))
        assert done.returncode == 7, done.stderr
        told = json.loads((tmp_path / "told").read_text())
        assert told["words"][:-1] == [*start, "--secret", "TOKEN"]
        assert (told["cwd"], told["token"]) == (str(running.ROOT), secret)
        assert not Path(told["words"][-1]).exists()
        text = (tmp_path / "task.yaml").read_text()
        assert "s3cr3t" not in text + done.stdout + done.stderr
        described = json.loads(yaml.safe_load(text)["envs"]["MANYHEADS_JOB"])
        assert described["arguments"][-1] == TPU[-1]


@pytest.mark.extras
def test_what_skypilot_refuses_is_one_sentence(sky, tmp_path):
    words = [*CONFIG, "--workdir=/mnt/a", f"--sky={sky}", f"--out={tmp_path / 'task.yaml'}"]
    done = called(*words, "--accelerator=A100:8", "--infra=nowhere", HOME=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: SkyPilot refuses the task" in done.stderr
    assert not (tmp_path / "task.yaml").exists()
    done = called(*words, "--accelerator=A100:8", "--nodes=2", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    line = shlex.split(done.stdout.partition(" by: ")[2])
    assert line[:2] == ["sky", "launch"]
    assert yaml.safe_load((tmp_path / "task.yaml").read_text())["num_nodes"] == 2


@pytest.mark.extras
def test_odd_words_arrive_through_the_script_that_skypilot_makes(sky, tmp_path, folder):
    described = test_task.job(test_task.ODD)
    rendered = task.task(described, "heads")
    # SkyPilot's own: what it writes on each node around the task's script.
    make = (
        "import json, sys; from sky.skylet import log_lib; told = json.load(sys.stdin); "
        "print(log_lib.make_task_bash_script(told['run'], told['envs']))"
    )
    ranks = dict(SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK="1", SKYPILOT_NODE_IPS="a\nb")
    told = dict(run=rendered["run"], envs=rendered["envs"] | ranks)
    home = dict(HOME=str(tmp_path / "home"), PATH=os.environ["PATH"])
    (tmp_path / "home").mkdir()
    script = subprocess.run(
        [str(sky.parent / "python"), "-I", "-c", make],
        input=json.dumps(told),
        env=home,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (tmp_path / "home" / "sky_workdir").symlink_to(folder)
    done = subprocess.run(
        ["bash", "-c", script], env=home, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [
        *described.arguments(),
        *("--num_processes=2", "--coordinator=a", "--process_id=1"),
    ]
    assert not [name for name in "fgh" if (tmp_path / name).exists() or (folder / name).exists()]


def test_a_dry_run_shows_task_and_command_and_starts_nothing(tmp_path):
    done = called(*TPU, "--spot", "--dry_run", "--env=TOKEN=s3cr3t", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "s3cr3t" not in done.stdout
    shown, _, line = done.stdout.partition("\n\nin ")
    assert yaml.safe_load(f"{shown}\n")["run"] == task.RUN
    assert shlex.split(line)[1:] == [
        *("sky", "jobs", "launch", "--yes", "--name=heads", "--secret", "TOKEN", "TASK.yaml")
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (CONFIG, "--accelerator is missing"),
        (["--config=configs/toy.py", "--accelerator=A100"], "--name is missing"),
        ([*TPU, "--workdir=runs/a"], "goes with its machine"),
        ([*TPU, "--sky=/nowhere/sky"], "--sky=/nowhere/sky is not found"),
    ],
)
def test_a_mistake_is_one_sentence(words, said):
    done = called(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_a_sky_without_skypilot_is_named(tmp_path):
    if importlib.util.find_spec("sky"):
        pytest.skip("SkyPilot is here")
    stub = stand_in(tmp_path, Path(sys.executable))
    done = called(*TPU, f"--sky={stub}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No module named 'sky'" in done.stderr


folder = test_task.folder
