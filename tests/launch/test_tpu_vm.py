"""The commands against those of gcloud's reference, and what runs on a stand-in gcloud."""

import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from configs.errors import UserError
from launch import tpu_vm

ROOT = Path(__file__).parents[2]


def test_create_is_the_references_example():
    # The first example of the reference page, with its own image named.
    assert shlex.join(
        tpu_vm.create_command(
            "my-node-001",
            "us-central2-b",
            "v4-8",
            project="my-project",
            version="v2-alpha-tpuv4",
        )
    ) == (
        "gcloud compute tpus queued-resources create my-node-001 --node-id=my-node-001 "
        "--zone=us-central2-b --project=my-project --accelerator-type=v4-8 "
        "--runtime-version=v2-alpha-tpuv4"
    )


@pytest.mark.parametrize(
    ("accelerator_type", "image"),
    [
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_image_suits_the_generation(accelerator_type: str, image: str):
    argv = tpu_vm.create_command("a", "us-west4-a", accelerator_type)
    assert f"--runtime-version={image}" in argv
    assert f"--accelerator-type={accelerator_type}" in argv
    assert not any(argument.startswith("--project") for argument in argv)


def test_create_spot_in_time():
    argv = tpu_vm.create_command("a", "us-west4-a", "v5litepod-8", spot=True, valid_until="1d12h")
    assert argv[-2:] == ["--spot", "--valid-until-duration=1d12h"]


def test_topology_replaces_the_size():
    argv = tpu_vm.create_command("a", "us-central2-b", "v4-32", topology="2x2x4")
    assert "--type=v4" in argv
    assert "--topology=2x2x4" in argv
    assert not any(argument.startswith("--accelerator-type") for argument in argv)


@pytest.mark.parametrize("project", ["my-project-2", "example.com:my-project", "123456789012"])
def test_projects(project):
    assert f"--project={project}" in tpu_vm.delete_command("heads", "us-west4-a", project)


def test_delete():
    assert tpu_vm.delete_command("heads", "us-west4-a", "my-project")[4:] == [
        "delete",
        "heads",
        "--zone=us-west4-a",
        "--project=my-project",
        "--force",
        "--quiet",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Heads", "us-west4-a", "v4-8"), "--name=Heads is no Google Cloud name"),
        (("heads-", "us-west4-a", "v4-8"), "--name=heads- is no"),
        (("a" * 64, "us-west4-a", "v4-8"), "at most 63"),
        (("", "us-west4-a", "v4-8"), "--name is missing"),
        (("heads", "us-west4", "v4-8"), "--zone=us-west4 is no zone"),
        (("heads", "", "v4-8"), "--zone is missing"),
        (("heads", "us-west4-a", "v5lite-8"), "did you mean 'v5litepod'"),
        (("heads", "us-west4-a", "v5e"), "is no TPU type"),
        (("heads", "us-west4-a", "v4"), "such as v4-8"),
        (("heads", "us-west4-a", "v4-0"), "such as v4-8"),
    ],
)
def test_mistakes(arguments: tuple[str, str, str], said: str):
    with pytest.raises(UserError, match=said):
        tpu_vm.create_command(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"topology": "8"}, "2x2x4"),
        ({"valid_until": "soon"}, "1d12h"),
        ({"project": "--evil"}, "--project=--evil is no project id"),
        ({"version": "a b"}, "--version=a b is no runtime image; they look like tpu-ubuntu2204"),
    ],
)
def test_mistakes_in_options(options: dict[str, str], said: str):
    with pytest.raises(UserError, match=said):
        tpu_vm.create_command("a", "us-west4-a", "v4-8", **options)


def test_run_copies_installs_and_starts():
    pack, copy, install, start = tpu_vm.run_commands(
        "heads", "us-west4-a", "python -m train --x='a b'", "/tmp/code.tar.gz", project="my-project"
    )
    assert pack[0] == "tar"
    everywhere = ["--zone=us-west4-a", "--project=my-project", "--worker=all"]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy == [*tpu, "scp", "/tmp/code.tar.gz", "heads:manyheads.tar.gz", *everywhere]
    assert install[:-1] == [*tpu, "ssh", "heads", *everywhere]
    assert "-c requirements.lock -e '.[tpu]'" in install[-1]
    assert start == [
        *(*tpu, "ssh", "heads", *everywhere),
        "--command=cd manyheads && . .venv/bin/activate && {\npython -m train --x='a b'\n}",
    ]


def test_run_needs_a_command():
    with pytest.raises(UserError, match="--command is missing"):
        tpu_vm.run_commands("heads", "us-west4-a", " ", "a.tar.gz")


@pytest.mark.parametrize("detach", [False, True])
def test_remote_lines_are_shell(detach: bool):
    commands = tpu_vm.run_commands(
        "heads", "us-west4-a", "echo 'it''s' \"$HOME\"", "a.tar.gz", detach=detach
    )
    for argv in commands[2:]:
        line = argv[-1].removeprefix("--command=")
        checked = subprocess.run(["bash", "-n", "-c", line], capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_a_line_of_two_commands_runs_whole_or_not_at_all(tmp_path: Path):
    (*_, last) = tpu_vm.run_commands("a", "us-west4-a", "echo one; echo two # three", "a.tar.gz")
    line = last[-1].removeprefix("--command=")
    activate = tmp_path / "manyheads" / ".venv" / "bin" / "activate"

    def said() -> str:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=False)
        return done.stdout.decode()

    assert said() == ""
    activate.parent.mkdir(parents=True)
    activate.write_text("")
    assert said() == "one\ntwo\n"


def test_archive_holds_the_code_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clone = tmp_path / "clone"
    kept = ["setup.cfg", "model/a.py", "tests/runs/a.py", ".ci/run"]
    left = [
        ".git/config",
        ".venv-newest/x",
        "runs/toy/x",
        "model/__pycache__/a.pyc",
        ".mypy_cache/x",
    ]
    for name in kept + left:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("")
    monkeypatch.setattr(tpu_vm, "ROOT", clone)
    archive = tmp_path / "code.tar.gz"
    subprocess.run(tpu_vm.run_commands("a", "us-west4-a", "true", str(archive))[0], check=True)
    with tarfile.open(archive) as packed:
        names = {member.name.removeprefix("./") for member in packed if member.isfile()}
    assert names == set(kept)


def command(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.tpu_vm", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


PLACE = ("--name=heads", "--zone=us-west4-a")


def test_dry_run_prints_what_a_shell_reads_back():
    done = command("run", *PLACE, "--command=python -m train --x='a b'", "--dry_run")
    assert done.returncode == 0, done.stderr
    expected = tpu_vm.run_commands(
        "heads", "us-west4-a", "python -m train --x='a b'", "manyheads.tar.gz"
    )
    assert shlex.split(done.stdout) == [argument for argv in expected for argument in argv]


@pytest.mark.parametrize(
    ("accelerator_type", "topology", "expected"),
    [
        ("v5litepod-8", "", False),
        ("v5litepod-16", "", True),
        ("v5p-8", "", False),
        ("v5p-16", "", True),
        ("v6e-8", "2x4", False),
        ("v6e-8", "4x4", True),
        ("v4-8", "2x2x1", False),
        ("v4-8", "2x2x2", True),
    ],
)
def test_slices_of_several_hosts_are_known(accelerator_type, topology, expected):
    assert tpu_vm.has_several_hosts(accelerator_type, topology) == expected


def test_a_slice_of_several_hosts_is_noted():
    for kind, noted in (("v5litepod-8", False), ("v5litepod-16", True)):
        done = command("create", *PLACE, f"--type={kind}", "--dry_run")
        assert done.returncode == 0, done.stderr
        assert ("on a disk that all of them share" in " ".join(done.stderr.split())) == noted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (PLACE, "the command needs one of the words create, run, delete"),
        (("crate", *PLACE), "did you mean 'create'"),
        (("create", *PLACE), "--type is missing"),
        (("create", *PLACE, "--type=h100-8"), "--type=h100-8 is no TPU type"),
        (("run", *PLACE), "--command is missing"),
        (("delete", *PLACE, "--command=ls"), "--command is for run, not for delete"),
        (("run", *PLACE, "--command=ls", "--spot"), "--spot is for create, not for run"),
    ],
)
def test_command_mistakes(arguments: tuple[str, ...], said: str):
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_gcloud(tmp_path: Path):
    done = command("delete", *PLACE, path=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: gcloud is not found; install")


@pytest.mark.parametrize("status", [0, 3])
def test_gcloud_is_run(tmp_path: Path, status: int):
    stand_in = tmp_path / "gcloud"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "$0.arguments"\nexit {status}\n')
    stand_in.chmod(0o755)
    done = command("delete", *PLACE, path=f"{tmp_path}:{os.environ['PATH']}")
    arguments = (tmp_path / "gcloud.arguments").read_text().splitlines()
    assert arguments == tpu_vm.delete_command("heads", "us-west4-a")[1:]
    assert done.returncode == (2 if status else 0)
    assert ("failed with status 3" in done.stderr) == bool(status)
