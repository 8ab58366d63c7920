"""A job: what a launcher runs, wherever it runs it.

Every launcher takes the same words after its own flags::

    python -m launch.local --processes=2 --config=configs/toy.py --workdir=runs/two
    python -m launch.ssh --hosts=a,b --config=configs/toy.py --workdir=runs/two

Values of the environment may be secrets: they are in no text that a job gives of itself.
"""

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from configs import command
from configs.errors import UserError

flags.disclaim_key_flags()

HIDDEN = "***"  # in place of a value of the environment
_OF_TRAINING = re.compile(r"--?(?:no)?(config(?:\.[^=]*)?|workdir)(=.*)?$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job runs on."""

    hosts: int = 1
    processes: int = 1  # of each host
    accelerator: str = ""  # as the engine names it, such as v5litepod-8 or A100:8
    spot: bool = False  # cheaper, and may be taken away

    @property
    def total(self) -> int:
        """Returns how many processes the run has."""
        return self.hosts * self.processes


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be run: config, overrides, workdir, environment, resources."""

    config: str  # FILE.py or FILE.py:argument
    workdir: str
    overrides: tuple[str, ...] = ()  # --config.section.field=value
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    resources: Resources = Resources()

    def arguments(self) -> list[str]:
        """Returns the words after ``python -m train``, the same with every launcher."""
        workdir = [f"--workdir={self.workdir}"] if self.workdir else []
        return [f"--config={self.config}", *self.overrides, *workdir]

    def line(self) -> str:
        """Returns the job as a line that a shell reads back, without the environment's values."""
        shown = [f"{name}={HIDDEN}" for name in sorted(self.environment)]
        return " ".join([*shown, shlex.join(["python", "-m", "train", *self.arguments()])])

    def about(self) -> dict[str, object]:
        """Returns what a record says of the job: JSON, without the environment's values."""
        return dict(
            config=self.config,
            overrides=list(self.overrides),
            workdir=self.workdir,
            environment=sorted(self.environment),
            resources=dataclasses.asdict(self.resources),
        )


def define_flags() -> None:
    """Defines the flags of a job that all launchers take."""
    command.define_config()
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
    flags.DEFINE_multi_string(
        "env",
        [],
        "NAME=VALUE for the environment of the run, or NAME, whose value is taken from here; may "
        "be given several times.",
    )
    flags.DEFINE_bool("dry_run", False, "Show what would be run and written, and do none of it.")


def of_flags(resources: Resources, words: Sequence[str] | None = None) -> Job:
    """Returns the job that the flags describe.

    Args:
      resources: of the launcher's own flags.
      words: of the command line; those of this command where None.

    Raises:
      UserError: a flag of the job is ill-formed, or no config is given.
    """
    command.config()
    overrides = of_training(sys.argv[1:] if words is None else words)
    kept = [word for word in overrides if re.match(r"--?(no)?config\.", word)]
    workdir = flags.FLAGS.workdir or ""
    for word in (*kept, workdir):
        if "\0" in word:
            raise UserError("a flag holds a zero byte, which no command line can; leave it out.")
    return Job(
        command.config_source(),
        workdir,
        tuple(kept),
        environment(flags.FLAGS.env, os.environ),
        resources,
    )


def of_training(words: Sequence[str]) -> list[str]:
    """Returns the flags of a command line that are training's, each as one word."""
    found: list[str] = []
    takes = False  # whether the word before waits for its value
    for word in words:
        if takes and not word.startswith("--"):
            found[-1] += f"={word}"
            takes = False
            continue
        matched = _OF_TRAINING.match(word)
        takes = matched is not None and matched[2] is None
        if matched:
            found.append(word)
    return found


def environment(given: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment that ``--env`` describes.

    Args:
      given: NAME=VALUE or NAME.
      here: where the value of a NAME alone is found.

    Raises:
      UserError: a name is none, or has no value here.
    """
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # Not shown: where the name was forgotten, it is the value.
            raise UserError(
                "a word of --env begins with no name of a variable; write --env=NAME=VALUE, with "
                "letters, digits and _ in the name."
            )
        if not equals and name not in here:
            raise UserError(
                f"--env={name} takes its value from here, where it is not set; set it, or write "
                f"--env={name}=VALUE."
            )
        found[name] = value if equals else here[name]
        if "\0" in found[name]:
            raise UserError(f"--env={name} holds a zero byte, which no variable can; leave it out.")
    return found
