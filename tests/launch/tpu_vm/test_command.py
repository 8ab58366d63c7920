"""The command without a cloud: dry runs, mistakes, and gcloud's absence."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.hosts.host import ALIVE, COMMAND
from launch.tpu_vm import gcloud
from launch.tpu_vm.accelerators import accelerator
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.place import Place

ROOT = Path(__file__).parents[3]
PLACE = ("--name=heads", "--zone=us-west4-a")
HERE = Place("heads", "us-west4-a")
JOB = ("--config=configs/toy.py", "--workdir=gs://bucket/run")


def command(
    *arguments: str, folder: Path | str = "unused", path: str = os.environ["PATH"]
) -> subprocess.CompletedProcess[str]:
    """Runs the command, as it is with a job that is a test's own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.launch.tpu_vm.driver", str(folder), "60", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "XDG_STATE_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def plain(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "launch.tpu_vm", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def words(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Returns the commands that a dry run printed, read as a shell reads them."""
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_dry_run_of_run_shows_each_host_and_its_process():
    done = plain("run", *PLACE, *JOB, "--type=v5litepod-16", "--slices=2", "--dry_run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    over = [line.partition(", over: ")[2] for line in lines if ", over: " in line]
    nodes = [(f"heads-{slice_}", worker) for slice_ in (0, 1) for worker in range(4)]
    assert [shlex.split(line) for line in over] == [
        gcloud.ssh(HERE, node, worker, COMMAND, ALIVE) for node, worker in nodes
    ]
    runs = [shlex.split(line)[1:] for line in lines if line.startswith("  runs ")]
    place = ["--num_processes=8", "--coordinator=address-of-heads-0-0:8476"]
    assert runs == [
        ["python", "-m", "train", *JOB, *place, f"--process_id={index}"] for index in range(8)
    ]
    one = plain("run", *PLACE, *JOB, "--type=v5litepod-8", "--dry_run")
    assert "--num_processes" not in one.stdout
    for verb in ("logs", "stop"):
        done = plain(verb, *PLACE, "--slices=2", "--dry_run")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("as if each slice had one host")
        assert done.stdout.count("on heads-") >= 2
        assert "gcloud compute tpus tpu-vm ssh heads-1" in done.stdout


def test_dry_runs_without_gcloud_print_every_command_and_change_nothing(tmp_path):
    nowhere = dict(path=str(tmp_path))
    request = Request(accelerator("v5litepod-8"), tier="spot")
    asked = plain("create", *PLACE, "--type=v5litepod-8", "--spot", "--dry_run", **nowhere)
    assert words(asked) == [gcloud.create(HERE, request, "RUN")]
    assert words(plain("delete", *PLACE, "--dry_run", **nowhere)) == [
        gcloud.describe(HERE),
        gcloud.delete(HERE),
        gcloud.delete_node(HERE, "heads"),
    ]
    assert words(plain("list", "--dry_run", **nowhere)) == [
        gcloud.list_queued("-"),
        gcloud.list_nodes("-"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_watch_shows_no_value_of_the_environment(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    odd = "--config.data.path=a b'c;$(ls)\n"
    done = command(
        *("watch", *PLACE, *JOB, odd, "--type=v5litepod-16", "--slices=2", "--spot"),
        *("--env=TOKEN=secret", "--dry_run"),
        folder=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr
    shown = [shlex.split(line) for line in done.stdout.splitlines()[:5]]
    request = Request(accelerator("v5litepod-16"), 2, "spot")
    assert shown == [
        gcloud.describe(HERE),
        gcloud.create(HERE, request, "RUN"),
        gcloud.describe_node(HERE, "heads-0"),
        gcloud.describe_node(HERE, "heads-1"),
        gcloud.delete(HERE),
    ]
    train = shlex.join(["python", "-m", "train", JOB[0], odd, JOB[1], "--num_processes=8"])
    assert done.stdout.count(f"  runs TOKEN=*** {train} ") == 8
    assert [path.name for path in folder.iterdir()] == ["speed"]  # the stand-in's own


def test_a_slice_of_several_hosts_is_noted():
    for kind, noted in (("v5litepod-8", False), ("v5litepod-16", True)):
        done = plain("create", *PLACE, f"--type={kind}", "--dry_run")
        assert done.returncode == 0, done.stderr
        assert ("on a disk that all of them share" in " ".join(done.stderr.split())) == noted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (PLACE, "the command needs one of the words create, run, logs, stop, list, delete, watch"),
        (("crate", *PLACE), "did you mean 'create'"),
        (("create", *PLACE), "--type is missing"),
        (("create", *PLACE, "--type=h100-8"), "--type=h100-8 is no TPU type"),
        (("create", *PLACE, "--type=v4-8", "--spot", "--reserved"), "exclude each other"),
        (("create", "--name=a b", "--zone=us-west4-a", "--type=v4-8"), "is no Google Cloud name"),
        (("create", *PLACE, "--type=v4-8", "--project=$(ls)"), "is no project id"),
        (("create", *PLACE, "--type=v4-8", "--slices=0"), "--slices"),
        (("run", *PLACE, "--type=v4-8", "--dry_run"), "--config is missing"),
        (("delete", *PLACE, "--detach"), "--detach is for run, not for delete"),
        (("run", *PLACE, *JOB, "--spot"), "--spot is for create and watch, not for run"),
        (("list", *PLACE), "--name is not for list"),
        (("list", "--zone=us-west4"), "is no zone"),
    ],
)
def test_mistakes(arguments, said):
    done = plain(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--config=configs/toy.py",), "without --workdir a run is on the TPU VM's own disk"),
        ((JOB[0], "--workdir=runs/x"), "--workdir=runs/x is on the TPU VM's own disk"),
        ((JOB[1],), "--config is missing"),
        ((*JOB, "--hours=-1"), "--hours"),
        ((*JOB, "--wait"), "--wait is for create, not for watch"),
        ((*JOB, "--env=1=2"), "begins with no name of a variable"),
    ],
)
def test_mistakes_of_watch(changed, said, tmp_path):
    done = command("watch", *PLACE, "--type=v5litepod-8", *changed, folder=tmp_path, path="/bin")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", [("delete",), ("create", "--type=v4-8"), ("list",)])
def test_without_gcloud(tmp_path, verb):
    place = () if verb == ("list",) else PLACE
    done = plain(*verb, *place, path=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: gcloud is not found; install")
