"""A run as a task of SkyPilot, which finds machines in any cloud that the user has.

    python -m launch.sky --accelerator=tpu-v5litepod-8 --spot --name=heads
      --config=configs/gpt3.py:125m --workdir=gs://bucket/125m

renders the task, has SkyPilot read it, and starts it: with ``--spot`` (or ``--managed``) as a
managed job, which is started again on other machines when its own are taken away, and goes on from
what was saved; otherwise on a cluster of its own that goes down when it has been idle for
``--idle_minutes``. The code in this folder is copied and installed at the locked versions.
``--out=FILE.yaml`` only writes the task; ``--dry_run`` shows it.

SkyPilot lives in an environment of its own, for its requirements contradict the locked ones; the
command ``sky`` is looked for in PATH, or named by ``--sky``. Values of ``--env`` go to it as
secrets: they are in no file and in no list of processes.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from absl import flags

from configs import command
from configs.errors import UserError
from launch import elsewhere, job
from launch.sky import task

LOADER = Path(__file__).parent / "loader.py"
REFUSED = 3  # of LOADER
READING = 300  # seconds that SkyPilot may take to read a task


def _define_flags() -> None:
    job.define_flags()
    flags.DEFINE_string("accelerator", "", "A TPU such as tpu-v5litepod-8, or GPUs: A100:8.")
    flags.DEFINE_integer("nodes", 1, "How many machines with GPUs.", 1)
    flags.DEFINE_bool("spot", False, "Cheaper, and may be taken away; a managed job.")
    flags.DEFINE_bool("managed", False, "A managed job though it is not spot.")
    flags.DEFINE_string("infra", "", "Cloud, or cloud/region/zone; by default the cheapest.")
    flags.DEFINE_string("name", "", "Name of the job, or cluster.")
    flags.DEFINE_integer("idle_minutes", 10, "Idle minutes after which a cluster goes down.", 0)
    flags.DEFINE_string("out", "", "Write the task into this file, and start nothing.")
    flags.DEFINE_string("sky", "sky", "SkyPilot's command.")


def main() -> None:
    """Starts a task, or shows or writes it.

    Raises:
      UserError: a flag is ill-formed, or SkyPilot is missing or refuses the task.
    """
    given = flags.FLAGS
    resources = job.Resources(given.nodes, 1, given.accelerator, given.spot)
    described = job.of_flags(resources)
    if not given.accelerator:
        raise UserError("--accelerator is missing; name one, such as tpu-v5litepod-8 or A100:8.")
    if not given.name:
        raise UserError("--name is missing; choose one, for example --name=heads.")
    managed = given.spot or given.managed
    rendered = task.task(elsewhere.moved(described), given.name, given.infra, managed)
    text = task.text(rendered)
    names = sorted(described.environment)
    if given.dry_run:
        print(text)
        print(f"in {shlex.quote(str(elsewhere.CODE))}:")
        print(shlex.join(start_command("sky", given.name, names, "TASK.yaml", managed)))
        return
    sky = executable(given.sky)
    validate(text, names, sky)
    if given.out:
        try:
            Path(given.out).write_text(text)
        except OSError as error:
            raise UserError(
                f"--out={given.out} cannot be written ({error.strerror}); name another."
            ) from error
        line = start_command("sky", given.name, names, str(Path(given.out).absolute()), managed)
        print(f"start it in {shlex.quote(str(elsewhere.CODE))} by: {shlex.join(line)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{given.name}.yaml"
        file.write_text(text)
        started = start_command(str(sky), given.name, names, str(file), managed)
        environment = dict(os.environ) | dict(described.environment)
        signal.signal(signal.SIGINT, _leave_to_sky)
        done = subprocess.run(started, cwd=elsewhere.CODE, env=environment, check=False)
    sys.exit(done.returncode)


def _leave_to_sky(number: int, frame: FrameType | None) -> None:
    """Ctrl-C comes to SkyPilot too, which says what goes on and how to watch it again."""
    del number, frame


def start_command(sky: str, name: str, names: list[str], file: str, managed: bool) -> list[str]:
    """Returns the command that starts a task.

    Args:
      sky: SkyPilot's command.
      name: of the job, or cluster.
      names: of secrets; their values are taken from the command's environment.
      file: that holds the task.
      managed: whether SkyPilot starts it again when its machines are taken away.
    """
    secrets = [word for secret in names for word in ("--secret", secret)]
    if managed:
        return [sky, "jobs", "launch", "--yes", f"--name={name}", *secrets, file]
    down = [f"--idle-minutes-to-autostop={flags.FLAGS.idle_minutes}", "--down"]
    return [sky, "launch", "--yes", f"--cluster={name}", *down, *secrets, file]


def executable(given: str) -> Path:
    """Returns SkyPilot's command, where its environment has it.

    Raises:
      UserError: it is not found.
    """
    beside = str(Path(sys.executable).parent / given)
    found = shutil.which(os.path.expanduser(given)) or shutil.which(beside)
    if found is None:
        raise UserError(
            f"--sky={given} is not found; install SkyPilot into an environment of its own (python3 "
            "-m venv ~/sky && ~/sky/bin/pip install 'skypilot>=0.14') and name its command, such "
            "as --sky=~/sky/bin/sky."
        )
    return Path(os.path.realpath(found))


def validate(text: str, names: list[str], sky: Path) -> None:
    """Has SkyPilot read a task.

    Args:
      text: the task.
      names: of secrets.
      sky: SkyPilot's command.

    Raises:
      UserError: SkyPilot refuses it, or cannot be asked.
    """
    python = sky.parent / "python"
    try:
        done = subprocess.run(
            [str(python), "-I", str(LOADER), *names],
            input=text,
            capture_output=True,
            text=True,
            timeout=READING,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"{str(python)!r}, which should have SkyPilot, cannot be run ({error}); name the "
            "command of another environment by --sky."
        ) from error
    if done.returncode == REFUSED:
        reason = (done.stdout.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
        raise UserError(f"SkyPilot refuses the task ({reason}); change the flag that is meant.")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
        raise UserError(
            f"{str(python)!r} cannot read the task ({reason}); install 'skypilot>=0.14' there, or "
            "name the command of another environment by --sky."
        )


if __name__ == "__main__":
    command.run(main, _define_flags)
