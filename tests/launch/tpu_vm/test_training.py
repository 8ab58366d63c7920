"""A run that really trains on TPU VMs of a fake cloud: taken away, asked for again, resumed."""

import functools
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.group import free_port
from model import manifest
from tests.launch.tpu_vm.fake_gcloud import MARK, Machine
from tests.launch.tpu_vm.world import ZONE
from tests.train.processes import running
from train.metrics import read

pytestmark = pytest.mark.slow

SPEED = 60.0  # seconds there in one here
STEPS = 300
PLACE = ("--name=heads", f"--zone={ZONE}")
TRAINED = (*running.TINY, "--config.mesh.data=-1", f"--config.steps={STEPS}")
RUN = (*TRAINED, "--config.checkpoint.every=20", "--env=JAX_PLATFORMS=cpu")


class Desk:
    """A user's machine with the fake gcloud, and what is in its cloud."""

    def __init__(self, folder: Path):
        self.folder, self.machine, self.port = folder, Machine(folder, SPEED), free_port()
        path = self.machine.install()
        state = dict(PATH=path, XDG_STATE_HOME=str(folder / "state"))
        self.environment = running.environment() | state
        with self.machine.cloud() as cloud:
            cloud.put_queued("heads-2x", ZONE)

    def start(self, verb, *words):
        own = (f"--interpreter={sys.executable}", f"--logs={self.folder}/logs", "--nocheck")
        job = (f"--workdir={self.folder}/run", f"--coordinator_port={self.port}", *RUN)
        module = ["-m", "tests.launch.tpu_vm.training_driver", str(self.folder)]
        return subprocess.Popen(
            [sys.executable, *module, verb, *PLACE, *own, *job, *words],
            cwd=running.ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def watch(self, *words):
        return self.start("watch", "--type=v5litepod-8", "--spot", *words)

    def preempt(self):
        with self.machine.cloud() as cloud:
            cloud.preempt("heads", ZONE)

    def losses(self):
        rows = read(self.folder / "run")
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def reach(self, step):
        running.wait_until(lambda: max(self.losses(), default=0) >= step, 200)

    def left(self):
        """Returns what there is in the cloud that was asked for here, and what runs on hosts."""
        with self.machine.cloud() as cloud:
            found = [*cloud.queued.items(), *cloud.nodes.items()]
            others = f"{ZONE}/heads-2x" in cloud.queued
        assert others
        mark = f"{MARK}={self.folder}:".encode()
        processes = []
        for entry in Path("/proc").iterdir():
            try:
                known = entry.name.isdecimal() and mark in (entry / "environ").read_bytes()
            except OSError:
                continue
            if known:
                processes.append(entry.name)
        return [key for key, each in found if each["ours"]] + processes


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns the losses of a run of so many hosts that nothing happens to."""

    @functools.cache
    def found(slices):
        made = Desk(tmp_path_factory.mktemp("undisturbed"))
        (ended,) = running.ended([made.watch(f"--slices={slices}")], 300)
        assert ended.status == 0, ended
        assert made.left() == []
        return made.losses()

    return found


@pytest.mark.parametrize("slices", [1, 2])
def test_a_run_outlives_its_tpus_and_leaves_none(desk, undisturbed, slices):
    watch = desk.watch(f"--slices={slices}")
    desk.reach(45)
    desk.preempt()
    running.wait_until(lambda: len(list((desk.folder / "logs").glob(log(slices)))) == 2, 200)
    after = max(desk.losses())
    desk.reach(min(after + 60, STEPS - 40))
    desk.preempt()
    (ended,) = running.ended([watch], 400)
    assert ended.status == 0, ended
    assert desk.losses() == undisturbed(slices)
    assert manifest.whole_steps(desk.folder / "run")[-1] == STEPS
    assert desk.left() == []
    asked = re.findall(r"is asked for, for the (\S+) time", ended.err)
    assert asked == ["1st", "2nd", "3rd"], ended.err


def log(slices):
    """Returns the pattern of the first host's logs, one for each start."""
    return f"{'heads' if slices == 1 else 'heads-0'}.*.log"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_the_run_saved_and_the_tpus_given_back(desk, number):
    watch = desk.watch()
    desk.reach(20)
    watch.send_signal(number)
    (ended,) = running.ended([watch], 200)
    assert ended.status == 128 + number, ended
    step = manifest.whole_steps(desk.folder / "run")[-1]
    assert step == max(desk.losses())
    assert desk.left() == []


def test_a_watch_that_was_killed_is_gone_on_with_where_the_run_is(desk):
    words = (f"--config.steps={10 * STEPS}", "--config.checkpoint.every=0")
    watch = desk.watch(*words)
    desk.reach(20)
    watch.kill()
    watch.communicate()
    assert len(desk.left()) > 2
    again = desk.watch(*words)
    (ended,) = running.ended([again], 300)
    assert ended.status == 0, ended
    assert "the job heads runs already; following it" in ended.err
    assert sorted(desk.losses()) == list(range(1, 10 * STEPS + 1))
    assert desk.left() == []


def test_what_runs_is_followed_by_a_watch_and_another_job_is_left_as_it_is(desk):
    with desk.machine.cloud() as cloud:
        cloud.put_node("heads", ZONE, ours=False)
    words = (f"--config.steps={10 * STEPS}", "--config.checkpoint.every=0")
    (ended,) = running.ended([desk.start("run", "--detach", *words)], 100)
    assert ended.status == 0, ended
    desk.reach(5)
    other = desk.start("watch", "--type=v5litepod-8", *words, "--config.seed=7")
    (ended,) = running.ended([other], 100)
    assert ended.status == 2
    assert "runs already with another" in ended.err
    assert ended.err.rstrip().endswith("all is left as it is.")
    assert len(desk.left()) > 1
    with desk.machine.cloud() as cloud:
        assert f"{ZONE}/heads" in cloud.nodes
    watch = desk.start("watch", "--type=v5litepod-8", *words)
    running.wait_until(lambda: "follow" in watch.stderr.readline(), 60)
    before = max(desk.losses())
    (ended,) = running.ended([watch], 300)
    assert ended.status == 0, ended
    assert before < 10 * STEPS
    assert sorted(desk.losses()) == list(range(1, 10 * STEPS + 1))


def test_a_job_runs_is_shown_and_stopped_on_tpus_that_are_there(desk):
    with desk.machine.cloud() as cloud:
        cloud.put_node("heads", ZONE, ours=False)
    run = desk.start("run", "--detach")
    (ended,) = running.ended([run], 100)
    assert ended.status == 0, ended
    desk.reach(5)
    stopped = subprocess.run(
        [sys.executable, "-m", "launch.tpu_vm", "stop", *PLACE],
        cwd=running.ROOT,
        env=desk.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == 0, stopped
    running.wait_until(lambda: desk.left() == [], 60)
    shown = subprocess.run(
        [sys.executable, "-m", "launch.tpu_vm", "logs", *PLACE, f"--logs={desk.folder}/shown"],
        cwd=running.ROOT,
        env=desk.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "stopped by a signal and saved at step" in shown.stdout
    with desk.machine.cloud() as cloud:
        assert f"{ZONE}/heads" in cloud.nodes  # it is somebody's, and no command deleted it
    assert len(list((desk.folder / "shown").glob("heads.*.log"))) == 1
