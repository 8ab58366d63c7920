"""What is remembered of a resource on this machine's disk, so that none is forgotten.

It is written before a resource is asked for: whoever comes next then knows that there may be one.
"""

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from configs import files
from configs.errors import UserError
from configs.folders import user_state
from launch.tpu_vm.place import Place
from launch.tpu_vm.replies import Node, Queued, token

_FORM = 1  # of the file; another is none that can be read
_REMEMBERED = 8  # resources that are gone, by when they were made


@dataclasses.dataclass
class Record:
    """What one run has asked for; times in seconds since 1970."""

    name: str
    zone: str
    project: str
    slices: int = 1
    run: str = ""  # the token in the labels of what is asked for
    adopted: list[str] = dataclasses.field(default_factory=list)  # when those were made
    gone: list[str] = dataclasses.field(default_factory=list)  # the same of what was deleted
    attempts: int = 0
    asked: float | None = None  # when last; None: never
    unsure: bool = False  # whether the answer to that was lost
    held: float = 0.0  # seconds for which TPUs were held
    looked: float | None = None  # when they were last seen held; None: they were not
    crashes: int = 0  # in a row without a new step
    step: int = -1  # the furthest that is known

    @property
    def place(self) -> Place:
        """Returns where the resource is."""
        return Place(self.name, self.zone, self.project)

    def owns(self, found: Queued | Node) -> bool:
        """Tells whether a resource of this name was asked for, or adopted, by this run."""
        return (bool(self.run) and token(found) == self.run) or found.created in self.adopted

    def forget(self, created: str) -> None:
        """Notes that a resource is gone."""
        if created and created not in self.gone:
            self.gone = [*self.gone, created][-_REMEMBERED:]


def new(place: Place, slices: int) -> Record:
    """Returns the record of a run that has not asked for anything."""
    return Record(place.name, place.zone, place.project, slices, secrets.token_hex(8))


class Shelf(Protocol):
    """Where the record of one resource is kept."""

    def read(self) -> Record | None:
        """Returns the record; None where there is none."""

    def write(self, record: Record) -> None:
        """Writes the record, whole or not at all."""

    def delete(self) -> None:
        """Deletes the record."""


class Disk:
    """Keeps a record in a file of the user's state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Record | None:
        """Returns the record; None where there is none.

        Raises:
          UserError: it cannot be read.
        """
        if not files.is_file(self.path):
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found.pop("form") != _FORM:
                raise ValueError("another form")
            return Record(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{self.path} is no record of a TPU VM ({type(error).__name__}); see by "
                "python -m launch.tpu_vm list what is there, then delete the file."
            ) from error

    def write(self, record: Record) -> None:
        """Writes the record, whole or not at all.

        Raises:
          UserError: it cannot be written.
        """
        files.make_folder(self.path.parent, f"the state folder {self.path.parent}")
        files.write_text(self.path, json.dumps(dict(form=_FORM, **vars(record)), indent=1) + "\n")

    def delete(self) -> None:
        """Deletes the record; one that cannot be deleted names what is not there."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other commands of this machine from the same resource.

        Raises:
          UserError: one is at it.
        """
        files.make_folder(self.path.parent, f"the state folder {self.path.parent}")
        try:
            with FileLock(self.path.with_suffix(".lock"), timeout=0):
                yield
        except Timeout as error:
            raise UserError(
                f"--name={self.path.stem} is looked after by another command on this machine; wait "
                "for it, or stop it."
            ) from error


def folder() -> Path:
    """Returns the folder of all records."""
    return user_state() / "tpu_vm"


def disk(place: Place) -> Disk:
    """Returns where the record of a resource is kept; project and zone are known."""
    project = place.project.replace(":", "_")  # of a domain
    return Disk(folder() / project / place.zone / f"{place.name}.json")


def all_records(project: str, zone: str = "") -> list[Record]:
    """Returns the records of a project, of one zone or of all.

    Raises:
      UserError: one cannot be read.
    """
    found = sorted((folder() / project.replace(":", "_")).glob(f"{zone or '*'}/*.json"))
    return [record for path in found if (record := Disk(path).read()) is not None]
