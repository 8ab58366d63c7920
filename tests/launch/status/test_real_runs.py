"""Real runs, and what is told of them while they go on, hang, are killed and end."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from launch.status.looks import Looks
from tests.train import object_stores
from tests.train.processes import running

RUN = (*running.TINY, "--config.steps=1000000", "--config.checkpoint.every=50")
TWO = ("--processes=2", "--config.mesh.data=2", "--restarts=2", "--backoff=0.5")


def status(*words, environment=None):
    done = subprocess.run(
        [sys.executable, "-m", "launch.status", *map(str, words)],
        cwd=running.ROOT,
        env=running.environment() | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class Watched:
    """A run as its folder tells of it."""

    def __init__(self, folder):
        self._looks, self.report = Looks([str(folder)]), None

    def until(self, condition, seconds=120.0):
        """Looks until a condition holds of the report, and returns that."""
        until = time.monotonic() + seconds
        while True:
            (self.report,) = self._looks.round(20.0)
            if condition(self.report):
                return self.report
            assert time.monotonic() < until, self.report
            time.sleep(0.3)

    def pids(self):
        (run,) = self._looks.runs()
        return [process.pid for process in run.found.session.processes]


def trains(report):
    return (report.state, report.doing) == ("running", "training") and (report.step or 0) > 50


@pytest.mark.slow
def test_a_run_of_two_processes_of_which_one_hangs_is_killed_and_comes_again(tmp_path):
    words = (*RUN, *TWO, f"--workdir={tmp_path}")
    with subprocess.Popen(
        [sys.executable, "-m", "launch.local", *words],
        cwd=running.ROOT,
        env=running.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            watched = Watched(tmp_path)
            report = watched.until(trains)
            assert (report.processes, report.hosts, report.silent) == (2, 1, [])
            assert report.slowest["process"] in (0, 1)
            assert report.left_seconds > 0
            assert report.sessions == 1
            assert watched.until(lambda report: report.saved_step).saved_step >= 50
            assert report.tokens_per_second > 0

            # Both are asked where they are, and go on.
            pids = watched.pids()
            out = tmp_path / "out.json"
            said = status(tmp_path, "--stacks", f"--json={out}")
            stacks = json.loads(out.read_text())["stacks"]
            assert [(one["process"], one["why"]) for one in stacks] == [(0, None), (1, None)]
            for one in stacks:
                assert re.search(r"train/loop.py.* in train", one["stacks"])
                assert f"stacks of process {one['process']} on {one['host']}" in said
            step = report.step
            report = watched.until(lambda report: report.step > step + 50)
            assert watched.pids() == pids

            # One is stopped: named with how long, by /proc and by the signs it no longer gives.
            os.kill(pids[1], signal.SIGSTOP)
            report = watched.until(lambda report: report.silent, 20)
            assert [one["process"] for one in report.silent] == [1]
            assert f"a signal stopped it (kill -CONT {pids[1]})" in report.notes[0]
            report = watched.until(lambda report: report.silent[0]["seconds"] > 12, 40)
            assert report.state == "running"
            os.kill(pids[1], signal.SIGCONT)
            step = report.step
            watched.until(lambda report: not report.silent and report.step > step)

            # One is killed: all are started again, which is on record.
            os.kill(pids[1], signal.SIGKILL)
            report = watched.until(lambda report: report.sessions == 2 and trains(report))
            assert re.search(r"start 2; those before: (failed|lost) 1; ", "\n".join(report.notes))
            assert not set(watched.pids()) & set(pids)
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=60)
            report = watched.until(lambda report: report.state == "stopped", 10)
            assert report.saved_step == report.step
        finally:
            run.kill()


@pytest.mark.slow
def test_a_run_that_was_killed_is_told_from_one_that_runs_and_one_that_was_stopped(tmp_path):
    flags = ("--num_processes=1", "--config.mesh.fsdp=2")
    runs = {
        name: running.alone([*RUN, *flags, f"--workdir={tmp_path / name}"])
        for name in ("killed", "stopped")
    }
    try:
        watched = {name: Watched(tmp_path / name) for name in runs}
        for one in watched.values():
            one.until(trains)
        runs["killed"].kill()
        report = watched["killed"].until(lambda report: report.state == "failed", 10)
        assert "is gone and said nothing at its end" in report.notes[0]
        assert watched["stopped"].until(trains).state == "running"
        said = status(tmp_path)
        assert re.search(r"/killed +failed ", said)
        assert re.search(r"/stopped +running, ", said)
        runs["stopped"].send_signal(signal.SIGTERM)
        report = watched["stopped"].until(lambda report: report.state == "stopped", 30)
        assert report.notes[0] == "it was asked to end by SIGTERM; the same command goes on"
    finally:
        running.ended(list(runs.values()), 30)


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_in_an_object_store_is_told_of_there(tmp_path, scheme, extra):
    extra("gcsfs", "s3fs", "moto", "gcp_storage_emulator")
    flags = ("--num_processes=1", "--config.mesh.fsdp=2", "--config.steps=300")
    with object_stores.emulated(scheme) as (_, environment):
        run = subprocess.Popen(
            [sys.executable, "-m", "train", *RUN, *flags, f"--workdir={scheme}://runs/all/one"],
            cwd=running.ROOT,
            env=running.environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out = tmp_path / "out.json"

        def look():
            status(f"{scheme}://runs/all", f"--json={out}", environment=environment)
            return json.loads(out.read_text())["runs"][0]

        try:
            running.wait_until(lambda: look()["steps"], 120)  # it has said so itself
            report = look()
            assert report["workdir"] == f"{scheme}://runs/all/one"
            assert (report["state"], report["steps"], report["processes"]) == ("running", 300, 1)
        finally:
            (ended,) = running.ended([run], 120)
        assert ended.status == 0, ended
        report = look()
    assert (report["state"], report["step"], report["saved_step"]) == ("finished", 300, 300)
    assert report["loss"] > 0
    assert report["held_out"] > 0
