"""The command against a fake gcloud: what it asks for, shows, watches over and deletes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.tpu_vm.cloud import Cloud
from tests.launch.tpu_vm.fake_gcloud import Machine
from tests.launch.tpu_vm.texts import PROJECT
from tests.launch.tpu_vm.world import ZONE

ROOT = Path(__file__).parents[3]
PLACE = ("--name=heads", f"--zone={ZONE}")
SPEED = 1500.0  # seconds there in one here
WATCH = ("watch", *PLACE, "--type=v5litepod-8", "--spot", "--config=configs/toy.py")
DONE = 120  # seconds here in which all ends at the latest

# Whoever runs the tests in the background has the signal ignored, and so would what they start.
HEEDS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Desk:
    """A user's machine: the fake gcloud in its PATH, a state folder, and a cloud."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = Machine(folder, SPEED)
        path = self.machine.install()
        self.environment = {**os.environ, "PATH": path, "XDG_STATE_HOME": str(folder / "state")}
        self.edit(lambda cloud: cloud.put_queued("heads-2x", ZONE))

    def edit(self, change) -> None:
        with self.machine.cloud() as cloud:
            change(cloud)

    def cloud(self) -> Cloud:
        with self.machine.cloud() as cloud:
            return cloud

    def ours(self) -> list[str]:
        cloud = self.cloud()
        found = [*cloud.queued.items(), *cloud.nodes.items()]
        return [key for key, each in found if each["ours"]]

    def start(self, *arguments: str, mode: str = "60", **options) -> subprocess.Popen[str]:
        driver = ["-m", "tests.launch.tpu_vm.driver", str(self.folder), mode, *arguments]
        return subprocess.Popen(
            [sys.executable, "-c", HEEDS, *driver],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *arguments: str, mode: str = "60") -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, mode=mode)
        out, err = process.communicate(timeout=DONE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def watch(self, *more: str, **options) -> subprocess.CompletedProcess[str]:
        return self.run(*WATCH, f"--workdir={self.folder}/run", *more, **options)

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, condition) -> None:
        end = time.monotonic() + DONE
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_create_list_delete(desk: Desk):
    created = desk.run("create", *PLACE, "--type=v5litepod-8", "--spot", "--wait")
    assert created.returncode == 0, created.stderr
    assert "heads is in the queue" in created.stderr
    assert "heads ACTIVE, heads READY" in created.stderr
    assert desk.ours() == [f"{ZONE}/heads"] * 2
    labels = desk.cloud().queued[f"{ZONE}/heads"]["labels"]
    assert labels["launched-by"] == "manyheads"
    desk.edit(lambda cloud: cloud.put_node("theirs", ZONE))
    shown = desk.run("list", f"--zone={ZONE}")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if ZONE in line]
    assert [row[:5] for row in rows] == [["heads", ZONE, "v5litepod-8", "spot", "ACTIVE"]]
    assert "this machine" in shown.stdout
    everything = desk.run("list", "--all").stdout
    assert [name for name in ("heads-2x", "theirs", "other") if name not in everything] == []
    assert "gcloud" not in everything
    again = desk.run("create", *PLACE, "--type=v5litepod-8")
    assert again.returncode == 2
    assert "the name is taken" in again.stderr
    deleted = desk.run("delete", *PLACE)
    assert deleted.returncode == 0, deleted.stderr
    assert "heads is gone, nothing is left" in deleted.stderr
    assert desk.ours() == []
    assert f"{ZONE}/heads-2x" in desk.cloud().queued
    assert "none of ours" in desk.run("list").stdout
    assert [path.name for path in (desk.folder / "state").rglob("*.json")] == []


@pytest.mark.slow
def test_what_was_asked_for_and_is_not_there_is_listed(desk: Desk):
    assert desk.run("create", *PLACE, "--type=v5litepod-8").returncode == 0
    desk.edit(lambda cloud: cloud.queued.pop(f"{ZONE}/heads"))
    assert "not there" in desk.run("list").stdout


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("quota", "the project's quota is used up (RESOURCE_EXHAUSTED: Quota limit"),
        ("stockout", "the zone has no such TPU to give now (There is no more capacity"),
        ("denied", "Google Cloud does not let you"),
        ("bad", "Google Cloud does not understand the request"),
        ("after", "list shows whether it was made"),
    ],
)
def test_create_is_refused(desk: Desk, fault: str, said: str):
    desk.edit(lambda cloud: cloud.script.append(["queued-resources create", fault]))
    done = desk.run("create", *PLACE, "--type=v5litepod-8")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    kept = list((desk.folder / "state").rglob("*.json"))
    assert bool(kept) == (fault == "after")  # of what may be there, there is a record


@pytest.mark.slow
def test_create_waits_for_what_fails_and_deletes_it(desk: Desk):
    desk.edit(lambda cloud: setattr(cloud.faults, "fails", 1.0))
    done = desk.run("create", *PLACE, "--type=v5litepod-8", "--wait")
    assert done.returncode == 2
    assert "heads is FAILED" in done.stderr
    assert "it is deleted" in done.stderr
    assert desk.ours() == []


@pytest.mark.slow
def test_delete_of_several_slices_and_of_a_vm_alone(desk: Desk):
    desk.run("create", *PLACE, "--type=v5litepod-8", "--slices=2", "--wait")
    assert len(desk.ours()) == 3
    for path in (desk.folder / "state").rglob("*.json"):
        path.unlink()  # it was asked for from another machine
    assert desk.run("delete", *PLACE).returncode == 0
    assert desk.ours() == []
    desk.edit(lambda cloud: cloud.put_node("heads", ZONE, ours=True))
    assert desk.run("delete", *PLACE).returncode == 0
    assert desk.ours() == []


def test_watch_through_a_preemption(desk: Desk):
    process = desk.start(*WATCH, f"--workdir={desk.folder}/run", mode="2400")
    desk.until(lambda: desk.notes() == ["start heads"])
    desk.edit(lambda cloud: cloud.preempt("heads", ZONE))
    _, err = process.communicate(timeout=DONE)
    assert process.returncode == 0, err
    assert desk.notes()[-2:] == ["ended", "abandon"]
    assert desk.notes().count("start heads") == 2
    assert desk.ours() == []
    assert f"{ZONE}/heads-2x" in desk.cloud().queued
    assert err.splitlines()[-1].endswith("heads is gone, nothing is left")


def test_watch_of_several_slices(desk: Desk):
    done = desk.watch("--slices=2")
    assert done.returncode == 0, done.stderr
    assert desk.notes() == ["start heads-0 heads-1", "ended", "abandon"]
    assert desk.ours() == []


@pytest.mark.parametrize(
    ("mode", "more", "status", "said"),
    [
        ("crash", ("--restarts=1",), 7, "the job fell over, 2 times without a new step"),
        ("bug", (), 1, "RuntimeError: a bug"),
        ("1e9", ("--hours=0.5",), 1, "the budget of 0.5 hours of TPUs is used up"),
    ],
)
def test_watch_that_gives_up(desk: Desk, mode: str, more: tuple[str, ...], status: int, said: str):
    done = desk.watch(*more, mode=mode)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert desk.ours() == []


@pytest.mark.slow
def test_watch_keeps(desk: Desk):
    assert desk.watch("--keep").returncode == 0
    assert len(desk.ours()) == 2
    # What is kept is taken over by the next.
    done = desk.watch("--keep")
    assert "is there already" in done.stderr
    assert desk.run("delete", *PLACE).returncode == 0
    assert desk.ours() == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_nothing(desk: Desk, number: signal.Signals):
    process = desk.start(*WATCH, f"--workdir={desk.folder}/run", mode="1e9")
    desk.until(lambda: desk.notes() == ["start heads"])
    process.send_signal(number)
    _, err = process.communicate(timeout=DONE)
    assert process.returncode == 128 + number, err
    assert "once more leaves it as it is" in err
    assert desk.notes()[-1] == "stop"
    assert desk.ours() == []


@pytest.mark.slow
def test_a_closed_terminal_leaves_nothing(desk: Desk):
    """Its standard error is a terminal that hangs up: nothing that is said can be."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.launch.tpu_vm.driver", str(desk.folder), "1e9"),
            *(*WATCH, f"--workdir={desk.folder}/run"),
        ],
        cwd=ROOT,
        env=desk.environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    desk.until(lambda: desk.notes() == ["start heads"])
    os.close(leader)
    process.send_signal(signal.SIGHUP)  # as the kernel does to those at a terminal
    assert process.wait(timeout=DONE) == 128 + signal.SIGHUP
    assert desk.ours() == []


@pytest.mark.slow
def test_without_a_terminal_it_goes_on(desk: Desk):
    """Under nohup a closed terminal is nothing."""
    driver = ["tests.launch.tpu_vm.driver", str(desk.folder), "600"]
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", *driver, *WATCH, f"--workdir={desk.folder}/run"],
        cwd=ROOT,
        env=desk.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    desk.until(lambda: desk.notes() == ["start heads"])
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=DONE)
    assert process.returncode == 0
    assert desk.notes()[-2:] == ["ended", "abandon"]


@pytest.mark.slow
def test_a_second_ctrl_c_says_what_is_left(desk: Desk):
    process = desk.start(*WATCH, f"--workdir={desk.folder}/run", mode="1e9")
    desk.until(lambda: desk.notes() == ["start heads"])
    desk.edit(lambda cloud: cloud.script.extend([["delete", "before"]] * 1000))
    process.send_signal(signal.SIGINT)
    desk.until(lambda: desk.notes()[-1] == "stop")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DONE)
    assert process.returncode == 130
    (last,) = [line for line in err.splitlines() if line.startswith("error: ")]
    command = last.partition("delete it with: ")[2]
    assert command.startswith("gcloud compute tpus queued-resources delete heads --zone=")
    assert desk.ours()
    # And that command does it.
    desk.edit(lambda cloud: cloud.script.clear())
    subprocess.run(command.split(), env=desk.environment, check=True)
    desk.until(lambda: desk.ours() == [])


@pytest.mark.slow
def test_a_watch_that_was_killed_is_gone_on_with(desk: Desk):
    process = desk.start(*WATCH, f"--workdir={desk.folder}/run", mode="1e9")
    desk.until(lambda: desk.notes() == ["start heads"])
    busy = desk.watch()
    assert busy.returncode == 2
    assert "is looked after by another command" in busy.stderr
    process.kill()
    process.communicate()
    done = desk.watch()
    assert done.returncode == 0, done.stderr
    assert "is taken over" in done.stderr
    assert (desk.ours(), desk.cloud().made) == ([], 1)


def test_the_record_names_no_secret(desk: Desk):
    desk.watch("--keep", "--env=TOKEN=secret")
    (path,) = (desk.folder / "state").rglob("*.json")
    assert "secret" not in path.read_text()
    assert json.loads(path.read_text())["project"] == PROJECT
    assert "secret" not in "".join(desk.notes())


def test_the_fake_runs_lines_on_hosts(desk: Desk):
    desk.edit(lambda cloud: cloud.put_node("heads", ZONE, ours=True))
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "heads", f"--zone={ZONE}", "--quiet"]

    def on_host(line: str, worker: str = "1", **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*ssh, f"--worker={worker}", f"--command={line}"],
            env=desk.environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=DONE,
            **options,
        )

    done = on_host('cat; echo "$HOME"; exit 3', input="a b\n")
    uid = desk.cloud().nodes[f"{ZONE}/heads"]["uid"]
    assert done.stdout == f"a b\n{desk.folder}/hosts/heads/{uid}/1\n"
    assert done.returncode == 3
    assert on_host("pwd", "all").stdout.count("\n") == 2
    # What runs there ends when the TPU VM is taken away, also what has gone its own way.
    process = subprocess.Popen(
        [*ssh, "--worker=0", "--command=setsid sleep 1000 & echo $!; sleep 1000"],
        env=desk.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    number = process.stdout.readline().strip()
    desk.until(lambda: "sleep" in Path(f"/proc/{number}/cmdline").read_text())
    desk.edit(lambda cloud: cloud.preempt("heads", ZONE))
    _, err = process.communicate(timeout=DONE)
    assert (process.returncode, err) == (255, "Connection to heads closed by remote host.\n")
    desk.until(lambda: not Path(f"/proc/{number}").exists() or _dead(number))
    assert on_host("true").returncode == 1


def _dead(number: str) -> bool:
    return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].startswith("Z")


def test_a_terminal_that_is_closed_twice_still_leaves_nothing(desk: Desk):
    process = desk.start(*WATCH, f"--workdir={desk.folder}/run", mode="24000")
    desk.until(lambda: desk.notes() == ["start heads"])
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    process.communicate(timeout=DONE)
    assert process.returncode == 128 + signal.SIGHUP
    assert desk.ours() == []
