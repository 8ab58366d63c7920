"""A job of two processes that really train, under commands that stand in for SLURM's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.slurm import double
from tests.train.processes import running
from train.metrics import read

pytestmark = [pytest.mark.slow, pytest.mark.extras]
SECRET = "a 'secret'\n$(touch stolen)"
STEPS = 400
TRAINED = (*running.TINY, f"--config.steps={STEPS}", "--config.mesh.data=2")


class Cluster:
    """The stand-ins, and what is done to their jobs."""

    def __init__(self, folder):
        (folder / "bin").mkdir()
        (folder / "state").mkdir()
        double.install(folder / "bin")
        self.state = folder / "state"
        self.environment = running.environment() | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CLUSTER_DOUBLE": str(self.state),
            "PYTHONPATH": str(running.ROOT),
            "SLURM_JOB_ID": "7",  # as in a job of the user's own, from which this one is submitted
            "SLURM_NTASKS": "9",
        }
        for name in ("SBATCH_EXPORT", "SLURM_CONF"):
            self.environment.pop(name, None)

    def launch(self, *words):
        """Starts the launcher."""
        return subprocess.Popen(
            [sys.executable, "-m", "launch.slurm", "--poll=0.5", *words],
            cwd=running.ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words):
        """Runs one of SLURM's commands."""
        subprocess.run(words, env=self.environment, check=True)

    def record(self, job="1000"):
        """Returns what is known of a job."""
        path = self.state / job / "record"
        running.wait_until(path.exists)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(double, "STATE", self.state)
            return double.read(job)

    def close(self):
        """Ends what is left of all jobs."""
        for job in self.state.iterdir():
            self.call("scancel", job.name)


@pytest.fixture
def cluster(tmp_path, extra):
    extra("submitit")
    made = Cluster(tmp_path)
    yield made
    made.close()


def losses(workdir):
    """Returns the loss of each step; of one that was trained twice, both."""
    found = {}
    for row in read(workdir):
        if "loss" in row:
            found.setdefault(row["step"], []).append(row["loss"])
    return found


def files(folder):
    """Returns all that a folder's files hold."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_job_is_saved_at_its_limit_and_when_preempted_and_trains_as_an_undisturbed_one(
    cluster, tmp_path
):
    alone = running.command(
        [*TRAINED, "--processes=2", f"--workdir={tmp_path / 'alone'}"], "launch.local"
    )
    assert alone.status == 0
    undisturbed = losses(tmp_path / "alone")
    workdir = tmp_path / "disturbed run"
    cluster.environment["TOKEN"] = SECRET
    run = cluster.launch(
        *(*TRAINED, "--nodes=2", f"--workdir={workdir}", "--env=TOKEN", "--wait", "--requeues=2"),
    )
    for restart, name in enumerate(("USR2", "TERM"), start=1):
        before = restart * STEPS // 4
        running.wait_until(lambda before=before: max(losses(workdir), default=0) > before, 120)
        cluster.call("scancel", f"--signal={name}", "1000")
        running.wait_until(lambda restart=restart: cluster.record()["restarts"] == restart, 60)
    (ended,) = running.ended([run], 240)
    assert ended.status == 0, ended.err
    found = losses(workdir)
    assert max(found) == STEPS
    assert {step: set(values) for step, values in found.items()} == {
        step: set(values) for step, values in undisturbed.items()
    }
    assert max(len(values) for values in found.values()) == 1  # no step was trained twice
    assert "stopped by a signal and saved at step" in ended.out
    assert "the job is queued again, 2 times at most" in ended.out
    assert "the job is queued again, 1 times at most" in ended.out
    assert cluster.record()["state"] == "COMPLETED"
    assert (Path(running.ROOT) / "stolen").exists() is False
    for held in (files(workdir), files(cluster.state), ended.out.encode(), ended.err.encode()):
        assert b"secret" not in held


def test_a_mistake_is_not_repeated_and_its_status_is_the_launchers(cluster, tmp_path):
    wrong = (*TRAINED, "--config.mesh.data=3", "--nodes=2", f"--workdir={tmp_path / 'run'}")
    (ended,) = running.ended([cluster.launch(*wrong, "--wait")], 120)
    assert ended.status == 2
    assert "needs 6 devices and there are 4" in ended.err
    assert "ended as FAILED with exit status 2" in ended.err
    assert cluster.record()["restarts"] == 0


def test_a_cancelled_job_stays_away_though_it_has_been_saved(cluster, tmp_path):
    words = (*TRAINED, "--config.steps=100000", "--nodes=1", "--processes=2")
    run = cluster.launch(*words, f"--workdir={tmp_path / 'run'}", "--wait")
    running.wait_until(lambda: max(losses(tmp_path / "run"), default=0) > 10, 120)
    cluster.call("scancel", "1000")
    (ended,) = running.ended([run], 60)
    assert ended.status == 1
    assert "saved at step" in ended.out
    assert "ended as CANCELLED" in ended.err
    assert cluster.record()["restarts"] == 0


def test_requeues_are_counted_and_ctrl_c_leaves_a_job_that_is_attached_to_again(cluster, tmp_path):
    words = (*TRAINED, "--config.steps=100000", "--nodes=1", "--requeues=1")
    words += ("--config.mesh.data=1", f"--workdir={tmp_path / 'run'}")
    run = cluster.launch(*words, "--wait")
    running.wait_until(lambda: max(losses(tmp_path / "run"), default=0) > 10, 120)
    run.send_signal(signal.SIGINT)
    (ended,) = running.ended([run], 30)
    assert ended.status == 130
    assert "job 1000 goes on" in ended.err
    assert "scancel 1000" in ended.err
    assert cluster.record()["state"] == "RUNNING"
    again = cluster.launch("--attach=1000", f"--logs={tmp_path / 'run' / 'slurm'}")
    for restarts in (1, 1):
        step = max(losses(tmp_path / "run"))
        running.wait_until(lambda step=step: max(losses(tmp_path / "run")) > step + 4, 120)
        cluster.call("scancel", "--signal=USR2", "1000")
        running.wait_until(lambda restarts=restarts: cluster.record()["restarts"] == restarts, 60)
        time.sleep(0.5)
    (ended,) = running.ended([again], 60)
    assert ended.status == 128 + signal.SIGTERM
    assert "--requeues are used up" in ended.err
    assert "ended as FAILED with exit status 143" in ended.err
