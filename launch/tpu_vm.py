"""Asks for a TPU VM, runs a command on all its workers, gives it back.

    python -m launch.tpu_vm create --name=heads --zone=us-west4-a --type=v5litepod-8 --spot
    python -m launch.tpu_vm run --name=heads --zone=us-west4-a --command="python -m train
      --config=configs/gpt3.py:125m --workdir=runs/125m"
    python -m launch.tpu_vm delete --name=heads --zone=us-west4-a

``--dry_run`` prints the commands, quoted for a shell, and runs none. ``create`` files a
queued resource, which may wait for hours; ``gcloud compute tpus queued-resources list``
tells its state. ``run`` copies this clone to every worker, installs it there with the
``tpu`` extra at the locked versions and starts the command on all workers at once, as one
JAX program needs; ``--detach`` lets it outlive the connection.

On a slice of several hosts the processes find each other; their workdir has to lie on a disk that
all hosts share.

Limits: one slice (no multislice), and the Cloud TPU API, which has no TPU newer than v6e.

Sources: the reference pages of ``gcloud compute tpus queued-resources`` (create, delete)
and ``gcloud compute tpus tpu-vm`` (scp, ssh); the runtime images of the page "TPU software
versions" of the Cloud TPU documentation.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from configs import command
from configs.errors import UserError, nearest

VERBS = ("create", "run", "delete")

# Flags that only one verb takes.
OWNERS = {
    **dict.fromkeys(("type", "topology", "version", "spot", "valid_until"), "create"),
    **dict.fromkeys(("command", "detach"), "run"),
}

# The image that JAX is installed on, by generation.
RUNTIME_VERSIONS = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}

ROOT = Path(__file__).parent.parent
NOT_COPIED = (
    ".git",
    ".venv*",
    ".cache",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "*.egg-info",
    "./runs",
)

# An image's own Python may be older than 3.11; Ubuntu 22.04 has 3.11 beside it.
INSTALL = """\
set -e
python=python3
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  python=python3.11
  if ! command -v python3.11 >/dev/null; then
    sudo apt-get update -q
    sudo apt-get install -q -y python3.11 python3.11-venv
  fi
fi
mkdir -p manyheads
tar -xzf manyheads.tar.gz -C manyheads
cd manyheads
test -x .venv/bin/python || $python -m venv .venv
.venv/bin/python -m pip install -q -c requirements.lock -e '.[tpu]'
"""


def check_name(name: str) -> None:
    """Checks a name against Google Cloud's rule.

    Raises:
      UserError: it is missing or against the rule.
    """
    if not name:
        raise UserError("--name is missing; choose one, for example --name=heads.")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise UserError(
            f"--name={name} is no Google Cloud name; take at most 63 lower-case letters, digits "
            "and hyphens, a letter first and no hyphen last."
        )


def check_project(project: str) -> None:
    """Checks a project against Google Cloud's rule: an id, after a domain for some, or a number.

    Raises:
      UserError: it is against the rule.
    """
    if not re.fullmatch(r"([a-z0-9][a-z0-9.-]*:)?[a-z][-a-z0-9]{4,28}[a-z0-9]|[0-9]+", project):
        raise UserError(
            f"--project={project} is no project id; take 6 to 30 lower-case letters, digits and "
            "hyphens, a letter first and no hyphen last."
        )


def check_zone(zone: str) -> None:
    """Checks the form of a zone.

    Raises:
      UserError: it is missing or a region.
    """
    if not zone:
        raise UserError("--zone is missing; name one, for example --zone=us-west4-a.")
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone):
        raise UserError(f"--zone={zone} is no zone; zones look like us-west4-a.")


def generation(accelerator_type: str) -> str:
    """Returns the generation of a type: ``"v5litepod"`` of ``"v5litepod-8"``.

    Raises:
      UserError: the type is unknown.
    """
    name, _, size = accelerator_type.partition("-")
    if name not in RUNTIME_VERSIONS:
        raise UserError(
            f"--type={accelerator_type} is no TPU type{nearest(name, RUNTIME_VERSIONS)}; use one "
            f"of {', '.join(RUNTIME_VERSIONS)} with a size, such as v5litepod-8."
        )
    if not re.fullmatch(r"[1-9]\d*", size):
        raise UserError(
            f"--type={accelerator_type} needs a size after one hyphen, such as {name}-8."
        )
    return name


def has_several_hosts(accelerator_type: str, topology: str = "") -> bool:
    """Tells whether a slice has more than one host: more than 8 cores up to v5p, or chips since.

    A host has 4 chips of two cores up to v5p, and up to 8 chips of a v5e or v6e.
    """
    if topology:
        chips = math.prod(int(n) for n in topology.split("x"))
        return chips > (8 if generation(accelerator_type) in ("v5litepod", "v6e") else 4)
    return int(accelerator_type.partition("-")[2]) > 8


def create_command(
    name: str,
    zone: str,
    accelerator_type: str,
    project: str = "",
    topology: str = "",
    version: str = "",
    spot: bool = False,
    valid_until: str = "",
) -> list[str]:
    """Returns the command that asks for a TPU VM.

    Args:
      name: of the queued resource and of its one node.
      zone: where it lives.
      accelerator_type: generation and size, ``v5litepod-8``.
      project: the Google Cloud project; ``""`` leaves it to gcloud's settings.
      topology: chips along each axis, ``2x2x4``; it takes the place of the size in
        ``accelerator_type``, and gcloud takes it for some generations only.
      version: the runtime image; ``""`` takes the one that suits JAX on this generation.
      spot: a cheaper machine that may be taken away at any time.
      valid_until: how long to wait in the queue at most, ``6h``; ``""`` for ever.

    Raises:
      UserError: an argument is ill-formed.
    """
    family = generation(accelerator_type)
    if topology and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise UserError(f"--topology={topology} is no topology; they look like 2x4 or 2x2x4.")
    if valid_until and not re.fullmatch(r"(\d+[smhd])+", valid_until):
        raise UserError(f"--valid_until={valid_until} is no duration; they look like 6h or 1d12h.")
    if version and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", version):
        raise UserError(
            f"--version={version} is no runtime image; they look like {RUNTIME_VERSIONS[family]}."
        )
    if topology:
        shape = [f"--type={family}", f"--topology={topology}"]
    else:
        shape = [f"--accelerator-type={accelerator_type}"]
    return [
        *("gcloud", "compute", "tpus", "queued-resources", "create", name),
        f"--node-id={name}",
        *_place(name, zone, project),
        *shape,
        f"--runtime-version={version or RUNTIME_VERSIONS[family]}",
        *(["--spot"] if spot else []),
        *([f"--valid-until-duration={valid_until}"] if valid_until else []),
    ]


def delete_command(name: str, zone: str, project: str = "") -> list[str]:
    """Returns the command that deletes a TPU VM and its place in the queue, unasked."""
    return [
        *("gcloud", "compute", "tpus", "queued-resources", "delete", name),
        *_place(name, zone, project),
        "--force",  # the node goes too
        "--quiet",
    ]


def run_commands(
    name: str,
    zone: str,
    line: str,
    archive: str,
    project: str = "",
    detach: bool = False,
) -> list[list[str]]:
    """Returns the commands that copy the code, install it and run a line on all workers.

    Args:
      name: of the TPU VM.
      zone: where it lives.
      line: what to run, a shell line; ``python`` in it is the installed environment's.
      archive: the local file to pack the code into.
      project: the Google Cloud project; ``""`` leaves it to gcloud's settings.
      detach: go on when the connection ends, with the output in ~/manyheads.log.

    Raises:
      UserError: an argument is missing or ill-formed.
    """
    if not line.strip():
        raise UserError('--command is missing; give one, such as --command="python -m train ...".')
    place = [*_place(name, zone, project), "--worker=all"]
    # On lines of its own, so that "a; b" runs whole or not at all and a comment ends there.
    start = f"cd manyheads && . .venv/bin/activate && {{\n{line}\n}}"
    if detach:
        start = (
            f"nohup setsid bash -c {shlex.quote(start)} > manyheads.log 2>&1 < /dev/null & "
            "echo started, output in manyheads.log"
        )
    tpu_vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    return [
        [
            "tar",
            *(f"--exclude={pattern}" for pattern in NOT_COPIED),
            *("-czf", archive, "-C", str(ROOT), "."),
        ],
        [*tpu_vm, "scp", archive, f"{name}:manyheads.tar.gz", *place],
        [*tpu_vm, "ssh", name, *place, f"--command={INSTALL}"],
        [*tpu_vm, "ssh", name, *place, f"--command={start}"],
    ]


def _place(name: str, zone: str, project: str) -> list[str]:
    check_name(name)
    check_zone(zone)
    if project:
        check_project(project)
    return [f"--zone={zone}", *([f"--project={project}"] if project else [])]


def execute(commands: list[list[str]]) -> None:
    """Runs commands one after the other.

    Raises:
      UserError: gcloud is not installed, or a command failed.
    """
    if shutil.which("gcloud") is None:
        raise UserError(
            "gcloud is not found; install the gcloud CLI, or see the commands with --dry_run."
        )
    for argv in commands:
        status = subprocess.run(argv, check=False).returncode
        if status:
            raise UserError(
                f"{' '.join(argv[:5])!r} failed with status {status}; its own message is above."
            )


def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_string("name", "", "Name of the TPU VM.")
    flags.DEFINE_string("zone", "", "Zone, for example us-west4-a.")
    flags.DEFINE_string("project", "", "Google Cloud project; by default gcloud's own setting.")
    flags.DEFINE_string("type", "", "create: generation and size, for example v5litepod-8.")
    flags.DEFINE_string("topology", "", "create: chips along each axis, for example 2x2x4.")
    flags.DEFINE_string("version", "", "create: runtime image; by default the one for JAX.")
    flags.DEFINE_bool("spot", False, "create: cheaper, and may be taken away.")
    flags.DEFINE_string("valid_until", "", "create: longest wait in the queue, for example 6h.")
    flags.DEFINE_string("command", "", "run: the shell line to run on every worker.")
    flags.DEFINE_bool("detach", False, "run: go on when the connection ends.")
    flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")


def main(verb: str) -> None:
    """Runs one of the verbs with the flags.

    Raises:
      UserError: a flag is missing or ill-formed, or a command failed.
    """
    given = flags.FLAGS
    for name, owner in OWNERS.items():
        if given[name].present and verb != owner:
            raise UserError(f"--{name} is for {owner}, not for {verb}; leave it out.")
    with tempfile.TemporaryDirectory() as folder:
        if verb == "create":
            if not given.type:
                raise UserError("--type is missing; name one, for example --type=v5litepod-8.")
            commands = [
                create_command(
                    given.name,
                    given.zone,
                    given.type,
                    project=given.project,
                    topology=given.topology,
                    version=given.version,
                    spot=given.spot,
                    valid_until=given.valid_until,
                )
            ]
            if has_several_hosts(given.type, given.topology):
                print(
                    "note: this slice has several hosts, whose --workdir must lie on a disk that "
                    "all of them share, such as Filestore or Cloud Storage FUSE.",
                    file=sys.stderr,
                )
        elif verb == "delete":
            commands = [delete_command(given.name, given.zone, given.project)]
        else:
            archive = "manyheads.tar.gz" if given.dry_run else f"{folder}/manyheads.tar.gz"
            commands = run_commands(
                given.name,
                given.zone,
                given.command,
                archive,
                project=given.project,
                detach=given.detach,
            )
        if given.dry_run:
            for argv in commands:
                print(shlex.join(argv))
        else:
            execute(commands)


if __name__ == "__main__":
    command.run(main, define_flags, verbs=VERBS)
