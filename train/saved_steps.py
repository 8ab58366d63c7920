"""What lies in a run's folder: its saved steps, whole and damaged, and what else is there."""

import dataclasses
from collections.abc import Callable

from configs import files
from configs.errors import UserError
from configs.folders import Folder, run_folder
from model import checksums, manifest
from model.manifest import MANIFEST, STATE, STEPS, Examined, is_written
from model.saved import Saved
from train.opening import open_together
from train.processes.group import Processes


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """A step or a saved model that was whole once."""

    path: Folder
    number: int | None  # None for a step or a model that is looked at by itself
    found: Examined

    @property
    def name(self) -> str:
        """What a line calls it."""
        return str(self.path) if self.number is None else f"step {self.number}"

    def damage(self) -> list[str]:
        """Returns a phrase on each of its faults, having read all its bytes if sizes are right.

        Raises:
          UserError: an object store does not answer.
        """
        if self.found.manifest is None or self.found.faults:
            return self.found.faults
        bad = checksums.damaged(self.path, self.found.manifest.files)
        return [f"{name} does not hold what was written" for name in bad]

    @property
    def is_model(self) -> bool:
        """Tells whether a step of a run was reduced to a saved model, which no run goes on from."""
        held = self.found.manifest
        return self.number is not None and held is not None and STATE not in held.files

    @property
    def has_checksums(self) -> bool:
        """Tells whether what its files hold can be told."""
        held = self.found.manifest
        return held is not None and all(file.sha256 is not None for file in held.files.values())


@dataclasses.dataclass(frozen=True)
class Found:
    """What ``--checkpoint`` names."""

    path: Folder
    is_run: bool
    saved: list[SavedStep]  # oldest first
    others: dict[str, int]  # bytes of what else is among the steps, as a save that was cut off

    @property
    def whole(self) -> list[int]:
        """The steps that a run can go on from whose sizes are right, oldest first."""
        steps = (s for s in self.saved if not s.is_model and not s.found.faults)
        return [step.number for step in steps if step.number is not None]


def find(checkpoint: str, field: str = "--checkpoint") -> Found:
    """Looks at a run, a step or a saved model, whole or damaged, by the sizes of its files.

    Raises:
      UserError: there is none, it is of a newer format, or cannot be reached.
    """
    path = run_folder(checkpoint, field)
    there = set(files.names(path)) if files.is_folder(path) else None
    if there is None:
        raise UserError(f"{field}={checkpoint} is no folder; name a run, a step or a model.")
    if STEPS not in there:
        if MANIFEST not in there:
            raise UserError(
                f"{field}={checkpoint} is neither a run with saved steps, nor a step with its "
                f"{MANIFEST}, nor a saved model; name one of these."
            )
        return Found(path, False, [SavedStep(path, None, manifest.examine(path))], {})
    saved, others = [], {}
    folder = path / STEPS
    numbers = manifest.steps(path)
    for step in numbers:
        examined = manifest.examine(folder / str(step))
        # Without a manifest it does not exist: a save that was cut off, or is on its way.
        if examined.manifest is None and not is_written(folder / str(step)):
            others[str(step)] = examined.size
        else:
            saved.append(SavedStep(folder / str(step), step, examined))
    if foreign := sorted(set(files.names(folder)) - set(map(str, numbers))):
        sizes = files.sizes(folder)
        for name in foreign:
            others[name] = sum(n for file, n in sizes.items() if file.split("/")[0] == name)
    return Found(path, True, saved, others)


def open_one(
    checkpoint: str,
    items: tuple[str, ...] = (),
    field: str = "--checkpoint",
    say: Callable[[str], None] = lambda sentence: None,
) -> Saved:
    """Opens a step, a saved model, or the newest whole step of a run.

    Args:
      checkpoint: its folder.
      items: whose bytes are verified; what other items hold is not looked at.
      field: what gave it, for errors.
      say: is told of each step that is passed over.

    Raises:
      UserError: there is none, or it is damaged.
    """
    found = find(checkpoint, field)
    if not found.is_run and (faults := found.saved[0].found.faults):
        raise UserError(
            f"{field}={checkpoint} is damaged ({counted(faults)}); use another step, or copy it "
            "again from where it came."
        )
    return open_together(checkpoint, Processes(), items, field, say)


def counted(faults: list[str]) -> str:
    """Returns the first of some faults, and how many more there are."""
    more = len(faults) - 1
    return faults[0] + (f", and {more:,} more" if more else "")


def written(size: int | float) -> str:
    """Returns a number of bytes as a person reads it, such as "1.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
