"""The gcloud commands, each as a list of words, and the program that runs them.

No shell sees them: what a user gave is a word of its own or part of one, after ``--flag=``.

Sources: the reference pages of ``gcloud compute tpus queued-resources`` (create, delete, describe,
list) and ``gcloud compute tpus tpu-vm`` (delete, describe, list, ssh); that a label is a node's,
and that ``--reservation`` is alpha's alone, by the sources of the gcloud CLI 528.
"""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence

from configs.errors import UserError
from launch.tpu_vm.accelerators import Accelerator
from launch.tpu_vm.place import Place, shown, where

TIERS = ("on-demand", "spot", "reserved")

# Labels by which our resources are known.
BY, RUN = "launched-by", "manyheads-run"
OURS = "manyheads"

EVERYWHERE = "-"  # in place of a zone, where resources are listed

# Seconds that a command may take. One that asks for a resource waits until the queue has it.
QUICK, SLOW = 60.0, 300.0

_QUEUED = ("compute", "tpus", "queued-resources")
_NODES = ("gcloud", "compute", "tpus", "tpu-vm")
_JSON = ("--format=json", "--quiet")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for."""

    accelerator: Accelerator
    slices: int = 1
    tier: str = "on-demand"
    reservation: str = ""  # the one to take from; "" leaves the choice to Google Cloud
    version: str = ""  # the runtime image; "" takes the one for JAX
    valid_until: str = ""  # longest wait in the queue, as 6h; "" for ever

    @property
    def hosts(self) -> int:
        """Returns how many virtual machines there are in all slices."""
        return self.slices * self.accelerator.hosts

    @property
    def image(self) -> str:
        """Returns the runtime image."""
        return self.version or self.accelerator.generation.image


def check_request(request: Request) -> None:
    """Checks what gcloud would not understand.

    Raises:
      UserError: a flag is ill-formed.
    """
    if request.valid_until and not re.fullmatch(r"([0-9]+[smhd])+", request.valid_until):
        raise UserError(
            f"--valid_until={shown(request.valid_until)} is no duration; they look like 6h or "
            "1d12h."
        )
    if request.version and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", request.version):
        raise UserError(
            f"--version={shown(request.version)} is no runtime image; they look like "
            f"{request.accelerator.generation.image}."
        )
    if request.reservation and not re.fullmatch(
        r"[a-z]([-a-z0-9]*[a-z0-9])?|projects/[a-z0-9.:-]+/reservations/[a-z]([-a-z0-9]*[a-z0-9])?",
        request.reservation,
    ):
        raise UserError(
            f"--reservation={shown(request.reservation)} is no reservation; write its name, or "
            "projects/PROJECT/reservations/NAME."
        )


def create(place: Place, request: Request, run: str = "") -> list[str]:
    """Returns the command that asks for TPU VMs; it ends when the queue has the request.

    Args:
      place: of the queued resource, after which its nodes are called too.
      request: what is asked for.
      run: the token that marks what belongs to one run, as a label; ``""`` for none.
    """
    if request.slices == 1:
        nodes = [f"--node-id={place.name}"]
    else:
        nodes = [f"--node-count={request.slices}", f"--node-prefix={place.name}"]
    tier = {"on-demand": [], "spot": ["--spot"], "reserved": ["--reserved"]}[request.tier]
    track = []
    if request.reservation:
        track, tier = ["alpha"], [f"--reservation={request.reservation}"]
    labels = f"--labels={BY}={OURS}" + (f",{RUN}={run}" if run else "")
    return [
        *("gcloud", *track, *_QUEUED, "create", place.name),
        *nodes,
        *place.words(),
        *request.accelerator.words(),
        f"--runtime-version={request.image}",
        *tier,
        *([f"--valid-until-duration={request.valid_until}"] if request.valid_until else []),
        labels,
        *_JSON,
    ]


def describe(place: Place) -> list[str]:
    """Returns the command that tells the state of a queued resource."""
    return ["gcloud", *_QUEUED, "describe", place.name, *place.words(), *_JSON]


def delete(place: Place) -> list[str]:
    """Returns the command that deletes a queued resource with its nodes, unasked.

    It does not wait: that it is gone is seen by asking for it.
    """
    words = ("--force", "--async", "--quiet")
    return ["gcloud", *_QUEUED, "delete", place.name, *place.words(), *words]


def list_queued(zone: str, project: str = "") -> list[str]:
    """Returns the command that lists queued resources of a zone, or ``EVERYWHERE``."""
    return ["gcloud", *_QUEUED, "list", *where(zone, project), *_JSON]


def describe_node(place: Place, node: str) -> list[str]:
    """Returns the command that tells the state of a TPU VM."""
    return [*_NODES, "describe", node, *place.words(), *_JSON]


def delete_node(place: Place, node: str) -> list[str]:
    """Returns the command that deletes a TPU VM that is without a queued resource."""
    return [*_NODES, "delete", node, *place.words(), "--async", "--quiet"]


def list_nodes(zone: str, project: str = "") -> list[str]:
    """Returns the command that lists TPU VMs of a zone, or ``EVERYWHERE``."""
    return [*_NODES, "list", *where(zone, project), *_JSON]


def ssh(place: Place, node: str, worker: int, line: str, alive: int) -> list[str]:
    """Returns the command that runs a line on a host of a TPU VM.

    Args:
      place: whose zone and project.
      node: the TPU VM.
      worker: the number of the host.
      line: for the host's shell. It is a constant: what changes goes through standard input.
      alive: seconds between two signs of life of the connection, of which three may be missing.
    """
    kept = (f"ServerAliveInterval={alive}", "ServerAliveCountMax=3")
    ssh_flags = [f"--ssh-flag=-o{option}" for option in kept]
    words = [f"--worker={worker}", f"--command={line}", *ssh_flags, "--quiet"]
    return [*_NODES, "ssh", node, *place.words(), *words]


def current_project() -> list[str]:
    """Returns the command that tells the project of gcloud's settings."""
    return ["gcloud", "config", "get-value", "project", "--quiet"]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a command gave."""

    status: int | None  # exit status; None where none came in time
    out: str = ""
    err: str = ""


# Runs a command for so many seconds at most.
Run = Callable[[Sequence[str], float], Reply]


def run(argv: Sequence[str], timeout: float) -> Reply:
    """Runs a command of gcloud.

    It has a session of its own, so that Ctrl-C at a terminal does not cut it off between what it
    asks for and what it is told.

    Args:
      argv: its words.
      timeout: seconds after which it is ended; what it has asked for may happen nevertheless.

    Raises:
      UserError: gcloud is not installed.
    """
    check_installed()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Reply(None)
    return Reply(process.returncode, out, err)


def check_installed() -> None:
    """Checks that there is a gcloud.

    Raises:
      UserError: there is none.
    """
    if shutil.which("gcloud") is None:
        raise UserError(
            "gcloud is not found; install the gcloud CLI, or see the commands with --dry_run."
        )
