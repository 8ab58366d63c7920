"""Copies this clone to a TPU VM, installs it there and runs a line on all its workers.

Source: the reference pages of ``gcloud compute tpus tpu-vm`` (scp, ssh).
"""

import shlex
import subprocess
from pathlib import Path

from configs.errors import UserError
from launch.tpu_vm import gcloud
from launch.tpu_vm.place import where

ROOT = Path(__file__).parents[2]
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
      name: of the TPU VM, checked.
      zone: where it lives, checked.
      line: what to run, a shell line; ``python`` in it is the installed environment's.
      archive: the local file to pack the code into.
      project: the Google Cloud project, checked; ``""`` leaves it to gcloud's settings.
      detach: go on when the connection ends, with the output in ~/manyheads.log.

    Raises:
      UserError: there is no line.
    """
    if not line.strip():
        raise UserError('--command is missing; give one, such as --command="python -m train ...".')
    place = [*where(zone, project), "--worker=all"]
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


def execute(commands: list[list[str]]) -> None:
    """Runs commands one after the other.

    Raises:
      UserError: gcloud is not installed, or a command failed.
    """
    gcloud.check_installed()
    for argv in commands:
        status = subprocess.run(argv, check=False).returncode
        if status:
            raise UserError(
                f"{' '.join(argv[:5])!r} failed with status {status}; its own message is above."
            )
