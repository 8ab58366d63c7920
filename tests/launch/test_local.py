"""Several processes started by one command, and what becomes of their signals and statuses."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.processes import running
from train.metrics import read


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", *arguments],
        cwd=running.ROOT,
        env=running.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_stops_all_processes_and_saves(tmp_path):
    words = (*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}", "--processes", "2")
    (run,) = processes = [command(*words, "--config.steps=100000")]
    running.wait_until(lambda: len(read(tmp_path)) >= 2)
    run.send_signal(signal.SIGINT)
    (ended,) = running.ended(processes, 60)
    assert ended.status == 128 + signal.SIGTERM
    assert re.search(r"stopped by a signal and saved at step \d+; run again", ended.out)
    assert "peer ranks" not in ended.out
    assert not ended.err


def children(run):
    """Returns the processes that a launcher has started."""
    return [int(n) for n in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_none_is_left_when_it_is_stopped_before_all_have_come(tmp_path, number):
    words = (*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}", "--processes=2")
    run = command(*words)
    running.wait_until(lambda: len(children(run)) == 2)
    started = children(run)
    run.send_signal(number)
    running.ended([run], 20)
    running.wait_until(lambda: not any(Path(f"/proc/{n}").exists() for n in started), 20)


def test_a_mistake_is_one_sentence_of_each_process():
    (ended,) = running.ended([command("--processes=2", "--config=configs/toy.py")], 60)
    assert ended.status == 2
    assert "error: --workdir is missing" in ended.err
    (ended,) = running.ended([command("--config=configs/toy.py")], 60)  # one, where none is named
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "error: --workdir is missing" in ended.err


def test_a_process_that_is_killed_before_all_have_come_is_named(tmp_path):
    words = (*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}", "--processes=2")
    run = command(*words)
    running.wait_until(lambda: len(children(run)) == 2)
    os.kill(children(run)[1], signal.SIGKILL)
    (ended,) = running.ended([run], 60)
    assert ended.status == 128 + signal.SIGKILL
    assert ended.err.splitlines()[-1] == (
        "error: process 1 was ended by SIGKILL; the same command goes on from what was saved."
    )


def test_a_value_of_the_environment_arrives_and_is_written_nowhere(tmp_path):
    (tmp_path / "told.py").write_text(
        "import os\nimport jax\n\n"
        "def loss(logits, label):\n"
        "    assert os.environ['TOKEN'] == 'very secret'\n"
        "    return -jax.nn.log_softmax(logits)[label]\n"
    )
    words = (*running.TINY, "--config.mesh.data=1", "--config.steps=2", "--config.loss=told:loss")
    config = words[0].replace("=", f"={running.ROOT}/")
    run = subprocess.Popen(
        [sys.executable, "-m", "launch.local", config, *words[1:], "--env=TOKEN", "--workdir=run"],
        cwd=tmp_path,
        env=running.environment() | {"PYTHONPATH": str(running.ROOT), "TOKEN": "very secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    (ended,) = running.ended([run], 100)
    assert ended.status == 0, ended
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"very secret" in path.read_bytes()]
    assert "very secret" not in ended.out + ended.err
