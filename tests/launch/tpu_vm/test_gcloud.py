"""Command lines against the reference pages, and against gcloud itself where it is installed."""

import os
import shlex
import shutil
import subprocess

import pytest

from configs.errors import UserError
from launch.tpu_vm import gcloud
from launch.tpu_vm.accelerators import accelerator
from launch.tpu_vm.failures import Kind, of_reply
from launch.tpu_vm.gcloud import Reply, Request
from launch.tpu_vm.place import Place

HERE = Place("heads", "us-west4-a", "my-project")
PLAIN = ["--format=json", "--quiet"]


def test_create_is_the_references_example():
    place = Place("my-node-001", "us-central2-b", "my-project")
    request = Request(accelerator("v4-8"), version="v2-alpha-tpuv4")
    assert gcloud.create(place, request) == [
        *shlex.split(
            "gcloud compute tpus queued-resources create my-node-001 --node-id=my-node-001 "
            "--zone=us-central2-b --project=my-project --accelerator-type=v4-8 "
            "--runtime-version=v2-alpha-tpuv4"
        ),
        "--labels=launched-by=manyheads",
        *PLAIN,
    ]


def test_create_several_slices():
    request = Request(accelerator("v5litepod-16"), 3, "spot", valid_until="1d12h")
    argv = gcloud.create(HERE, request, "0123abcd")
    assert argv[6:] == [
        *("--node-count=3", "--node-prefix=heads", "--zone=us-west4-a", "--project=my-project"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
        "--valid-until-duration=1d12h",
        "--labels=launched-by=manyheads,manyheads-run=0123abcd",
        *PLAIN,
    ]


def test_create_of_a_reservation():
    reserved = gcloud.create(HERE, Request(accelerator("v5p-8"), tier="reserved"))
    assert "--reserved" in reserved
    named = gcloud.create(HERE, Request(accelerator("v5p-8"), reservation="mine"))
    assert named[:3] == ["gcloud", "alpha", "compute"]
    assert "--reservation=mine" in named
    assert not {"--reserved", "--spot"} & set(named)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(valid_until="soon"), "1d12h"),
        (dict(valid_until="6h;ls"), "1d12h"),
        (dict(version="a b"), "--version=a b is no runtime image; they look like v2-alpha-tpuv5-l"),
        (dict(version="--evil"), "is no runtime image"),
        (dict(reservation="a,b=c"), "is no reservation"),
        (dict(reservation="a\n"), r"--reservation='a\\n' is no reservation"),
    ],
)
def test_what_gcloud_would_not_understand(changed, said):
    with pytest.raises(UserError, match=said):
        gcloud.check_request(Request(accelerator("v5litepod-8"), **changed))


def all_commands() -> list[list[str]]:
    """Returns a command of each kind."""
    spot = Request(accelerator("v5litepod-16"), 2, "spot", valid_until="6h")
    torus = Request(accelerator("v4-8", "2x2x4"), tier="reserved")
    return [
        gcloud.create(HERE, spot, "0123abcd"),
        gcloud.create(HERE, torus, "0123abcd"),
        gcloud.create(HERE, Request(accelerator("v6e-8"), reservation="mine"), "0123abcd"),
        gcloud.describe(HERE),
        gcloud.delete(HERE),
        gcloud.list_queued(gcloud.EVERYWHERE, "my-project"),
        gcloud.describe_node(HERE, "heads-0"),
        gcloud.delete_node(HERE, "heads-0"),
        gcloud.list_nodes("us-west4-a", "my-project"),
        gcloud.ssh(HERE, "heads-0", 1, "cat", 5),
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="needs the gcloud CLI")
@pytest.mark.parametrize("argv", all_commands(), ids=lambda argv: " ".join(argv[2:6]))
def test_gcloud_itself_takes_all_words(argv, tmp_path):
    # Nobody is logged in, which it says once it has read its flags; what it does not know, before.
    environment = dict(
        PATH=os.environ["PATH"],
        HOME=str(tmp_path),
        CLOUDSDK_CONFIG=str(tmp_path),
        CLOUDSDK_CORE_CHECK_GCE_METADATA="false",
        CLOUDSDK_CORE_DISABLE_USAGE_REPORTING="true",
    )

    def said(words: list[str]) -> Reply:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return Reply(done.returncode, done.stdout, done.stderr)

    if "alpha" in argv and "Invalid choice: 'alpha'" in said(["gcloud", "alpha"]).err:
        pytest.skip("needs the alpha commands")
    failure = of_reply(said(argv))
    assert failure is not None
    assert failure.kind is Kind.DENIED, failure
    wrong = of_reply(said([*argv, "--bogus"]))
    assert wrong is not None
    assert wrong.kind is Kind.MISTAKE, wrong


def test_a_command_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    program = tmp_path / "gcloud"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gcloud.run(["gcloud"], 0.2) == Reply(None)
    program.write_text('#!/bin/sh\nprintf "%s" "$1"; echo oh >&2; exit 3\n')
    assert gcloud.run(["gcloud", "a b; $(ls)\n"], 10) == Reply(3, "a b; $(ls)\n", "oh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="gcloud is not found"):
        gcloud.run(["gcloud"], 10)
