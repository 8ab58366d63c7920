"""Runs that nobody looks after: what ends or stops their processes, and how they go on."""

import functools
import os
import pty
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model import manifest
from tests.launch.test_local import children
from tests.train.processes import running
from train.metrics import read

# The command, with other processes than training's; on a terminal of its own, where it has one.
COMMAND = """
import fcntl, os, signal, termios
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from configs import command
from launch import group, local
if "NOHUP" in os.environ:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
group.TRAINING = ("-c", os.environ["CHILD"])
command.run(local.main, local._define_flags)
"""


def launched(child, folder, *more, **streams):
    """Starts the command with processes that run some code in a folder."""
    words = ("--processes=2", f"--config={running.ROOT}/configs/induction.py", *more)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=folder,
        env=running.environment() | {"PYTHONPATH": str(running.ROOT), "CHILD": child},
        text=True,
        **(dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | streams),
    )


# Starts are counted by process 0; what each is to do stands in a list.
STARTS = """
import os, sys, time
from pathlib import Path
from train import heartbeat
heartbeat.begin()
first = "--process_id=0" in sys.argv or "--num_processes=1" in sys.argv
number = len(list(Path().glob("start*")))
if first:
    Path(f"start{number}").touch()
    status, step = ACTS[number]
    heartbeat.finished(step)
    sys.exit(status)
"""


def acts(*endings):
    return STARTS.replace("ACTS", repr(endings))


def test_a_crash_loop_is_given_up_with_its_last_failure_and_goes_on_longer_with_progress(tmp_path):
    # The third start gets further, so the count begins anew; then none does.
    child = acts((1, 3), (143, 3), (75, 5), (1, 5), (1, 5), (70, 5), (0, 9))
    run = launched(child, tmp_path, "--restarts=2", "--backoff=0.1")
    (ended,) = running.ended([run], 60)
    assert ended.status == 1
    goes_on = "; the run goes on from the beginning in"
    assert ended.err.splitlines() == [
        f"restart 1 of 2: the processes ended with exit status 1{goes_on} 0.1 s.",
        f"restart 2 of 2: the processes were asked to end by SIGTERM{goes_on} 0.2 s.",
        f"restart 1 of 2: the processes ended with exit status 75{goes_on} 0.1 s.",
        f"restart 2 of 2: the processes ended with exit status 1{goes_on} 0.2 s.",
        "error: the processes ended with exit status 1, after 2 restarts without a new step; the "
        "same command goes on from what was saved.",
    ]


def test_it_is_finished_when_the_processes_are_and_a_mistake_is_not_repeated(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    runs = [
        launched(acts((-1, 3), (0, 9)), one, "--restarts=1", "--backoff=0", "--processes=1"),
        launched(acts((2, 3), (0, 9)), two, "--restarts=1", "--backoff=0"),
    ]
    finished, mistaken = running.ended(runs, 60)
    assert (finished.status, finished.err.count("\n")) == (0, 1)
    assert mistaken.status == 2
    assert mistaken.err == (
        "error: the processes ended with exit status 2, a mistake that a restart would repeat; put "
        "right what is said above, then run again.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_restart_at_once(tmp_path, number):
    run = launched(acts((1, 3), (0, 9)), tmp_path, "--restarts=1", "--backoff=100")
    assert run.stderr.readline().endswith("in 100 s.\n")
    run.send_signal(number)
    (ended,) = running.ended([run], 5)
    assert ended.status == 128 + number
    said = f"asked to end by {number.name}, with nothing new to save; run again."
    assert ended.err == f"error: {said}\n"


def test_a_closed_terminal_ends_all_and_nothing_is_restarted(tmp_path):
    child = """
import signal, sys, time
from pathlib import Path

def end(*_):
    print("saved" * 100_000)  # more than a pipe holds
    sys.exit(143)

signal.signal(signal.SIGTERM, end)
Path(sys.argv[-1]).touch()
while True:
    time.sleep(0.1)
"""
    master, terminal = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    run = launched(child, tmp_path, "--restarts=3", start_new_session=True, **streams)
    os.close(terminal)
    running.wait_until(lambda: len(list(tmp_path.glob("*process_id*"))) == 2)
    started = children(run)
    os.close(master)
    (ended,) = running.ended([run], 20)
    assert ended.status == 128 + signal.SIGHUP
    assert len(started) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_a_closed_terminal_is_nothing_to_a_run_that_nohup_started(tmp_path, monkeypatch):
    monkeypatch.setenv("NOHUP", "1")
    child = """
import sys, time
from pathlib import Path
Path(sys.argv[-1]).touch()
while not Path("over").exists():
    time.sleep(0.1)
"""
    run = launched(child, tmp_path)
    running.wait_until(lambda: len(list(tmp_path.glob("*process_id*"))) == 2)
    run.send_signal(signal.SIGHUP)
    (tmp_path / "over").touch()
    (ended,) = running.ended([run], 20)
    assert (ended.status, ended.err) == (0, "")


STEPS = 160
RUN = (
    *running.TINY[1:],
    *(f"--config.steps={STEPS}", "--config.checkpoint.every=25", "--config.log.eval_every=60"),
    *("--config.log.eval_batches=2", "--config.mesh.data=2"),
)


def unattended(*words, cwd=running.ROOT):
    config = f"--config={running.ROOT}/configs/induction.py"
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", config, *RUN, *words],
        cwd=cwd,
        env=running.environment() | {"PYTHONPATH": str(running.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(folder):
    """Returns the loss of each step."""
    return {row["step"]: row["loss"] for row in read(folder) if "loss" in row}


PROCESSES = {2: ("--processes=2",), 1: ("--processes=1", "--config.host_devices=4")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns the losses of a run of so many processes that nothing happens to."""

    @functools.cache
    def found(processes):
        folder = tmp_path_factory.mktemp("undisturbed")
        run = unattended(*PROCESSES[processes], f"--workdir={folder}")
        (ended,) = running.ended([run], 200)
        assert (ended.status, ended.err) == (0, "")
        assert not list(folder.glob("stacks"))
        return losses(folder)

    return found


def reach(folder, step):
    running.wait_until(lambda: max(losses(folder), default=0) >= step, 150)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 1])
def test_a_run_whose_processes_are_killed_ends_by_itself_as_if_they_had_not_been(
    tmp_path, undisturbed, processes
):
    """Killed, then ended from outside as a preempted machine's are, then killed again."""
    draw = random.Random(processes)
    words = ("--restarts=2", "--backoff=0.5", f"--workdir={tmp_path}")
    run, after = unattended(*PROCESSES[processes], *words), 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        after = draw.randint(after + 5, after + 40)
        reach(tmp_path, after)
        os.kill(draw.choice(children(run)), number)
        assert re.match("restart 1 of 2: ", said(run, "restart ")), "it got further"
    (ended,) = running.ended([run], 200)
    assert ended.status == 0, ended
    assert f"saved in {tmp_path}" in ended.out
    assert manifest.whole_steps(tmp_path)[-1] == STEPS
    assert losses(tmp_path) == undisturbed(processes)


@pytest.mark.slow
def test_a_stopped_process_is_a_hang_of_all(tmp_path, undisturbed):
    words = ("--processes=2", "--restarts=1", "--backoff=0.5", "--stall=0.25")
    run = unattended(*words, f"--workdir={tmp_path}")
    reach(tmp_path, 40)
    os.kill(children(run)[1], signal.SIGSTOP)
    line = said(run, "restart ")
    folder = re.search(r"are above and in (\S+); the run goes on from step \d+ in 0.5 s.", line)[1]
    assert "(--stall=0.25); process 1 was stopped by a signal; the stacks" in line
    for index in (0, 1):
        text = Path(folder, f"process-{index}.txt").read_text()
        assert re.search(r"train/loop.py", text)
        assert "watch.py" in text  # of all threads
    (ended,) = running.ended([run], 200)
    assert ended.status == 0, ended
    assert losses(tmp_path) == undisturbed(2)


BROKEN = """
import pathlib, sys
import jax

def loss(logits, label):
    if "--process_id=0" in sys.argv and not pathlib.Path("failed").exists():
        pathlib.Path("failed").touch()
        raise RuntimeError("out of something")
    return -jax.nn.log_softmax(logits)[label]
"""


@pytest.mark.slow
def test_a_crash_of_one_is_no_mistake_of_those_who_say_what_it_said(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    words = ("--processes=2", "--restarts=1", "--backoff=0.1", "--workdir=run")
    run = unattended(*words, "--config.loss=broken:loss", "--config.steps=4", cwd=tmp_path)
    (ended,) = running.ended([run], 200)
    assert re.search(
        "restart 1 of 1: the processes ended with exit status 1; the run goes on from the "
        "beginning in 0.1 s.",
        ended.err,
    )
    assert (ended.status, list(losses(tmp_path / "run"))) == (0, [1, 2, 3, 4])


@pytest.mark.slow
def test_a_mistake_is_said_once_and_not_repeated(tmp_path):
    words = ("--processes=2", "--restarts=5", f"--workdir={tmp_path}")
    (ended,) = running.ended([unattended(*words, "--config.batch_size=7")], 100)
    assert ended.status == 2
    lines = ended.err.splitlines()
    assert "batch_size" in lines[0]
    assert "a mistake that a restart would repeat" in lines[-1]
    assert "restart 1" not in ended.err


@pytest.mark.slow
def test_ctrl_c_saves_and_nothing_is_restarted(tmp_path):
    run = unattended("--processes=2", "--restarts=5", f"--workdir={tmp_path}")
    reach(tmp_path, 10)
    run.send_signal(signal.SIGINT)
    (ended,) = running.ended([run], 60)
    assert (ended.status, ended.err) == (128 + signal.SIGINT, "")
    step = manifest.whole_steps(tmp_path)[-1]
    assert f"stopped by a signal and saved at step {step}" in ended.out


def said(run, start):
    """Returns the next line on standard error that begins so."""
    return next(line for line in run.stderr if line.startswith(start))
