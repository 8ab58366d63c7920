"""Steps of a run deleted by hand: all but the newest that hold what was written, and some for good.

What stays is verified by checksum first, so that the last good step is never deleted.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable

from configs import files
from configs.errors import UserError
from configs.folders import Folder
from model.manifest import STEPS, is_written
from model.saving import delete
from train.holding import Holding
from train.processes.group import Processes
from train.saved_steps import Found, counted, find


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of a step, or of what a save that was cut off left behind."""

    path: Folder
    name: str  # as "step 4"
    why: str  # what is wrong with it or special; "" where it is whole
    size: int  # bytes
    goes: bool


def plan(found: Found, keep: int, keep_every: int = 0, damaged: bool = False) -> list[Verdict]:
    """Says what becomes of each step of a run, oldest first.

    Args:
      found: the run.
      keep: how many of the newest steps that hold what was written stay; those are verified.
      keep_every: each step that this divides is verified and stays too; 0: none.
      damaged: whether what is damaged or cut off goes.

    Raises:
      UserError: no step is whole, so that the damaged ones are all there is.
    """
    verdicts, newest = [], 0
    for step in reversed(found.saved):
        if step.is_model and not step.found.faults:  # somebody made it so
            verdicts.append(Verdict(step.path, step.name, "a saved model", step.found.size, False))
            continue
        for_good = keep_every > 0 and (step.number or 0) % keep_every == 0
        is_new = newest < keep
        damage = step.damage() if is_new or for_good else step.found.faults
        newest += is_new and not damage
        goes = damaged if damage else not (is_new or for_good)
        why = counted(damage) if damage else ""
        verdicts.append(Verdict(step.path, step.name, why, step.found.size, goes))
    verdicts.reverse()
    for name, size in found.others.items():
        path = found.path / STEPS / name
        if re.fullmatch(r"[0-9]+(\.orbax-checkpoint-tmp.*)?", name) and not is_written(path):
            verdicts.append(Verdict(path, name, "a save that was cut off", size, damaged))
    if damaged and any(verdict.goes for verdict in verdicts) and not newest:
        raise UserError(
            f"{found.path / STEPS} holds no step that is whole, so its damaged ones stay; copy one "
            "again from where it came, or delete the folder yourself."
        )
    return verdicts


def prune(
    checkpoint: str,
    keep: int,
    keep_every: int = 0,
    damaged: bool = False,
    dry_run: bool = False,
    say: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Deletes steps of a run that nothing trains in; see ``plan``.

    Args:
      checkpoint: the run's folder.
      keep: see ``plan``.
      keep_every: likewise.
      damaged: likewise.
      dry_run: delete nothing.
      say: is told of each step, before it goes.

    Returns:
      What became of each.

    Raises:
      UserError: it is no run, one trains in it, or something could not be deleted.
    """
    found = find(checkpoint)
    if not found.is_run:
        raise UserError(
            f"--checkpoint={checkpoint} is not a run; name the folder that holds {STEPS}."
        )
    if dry_run:
        verdicts = plan(found, keep, keep_every, damaged)
        for verdict in verdicts:
            say(verdict)
        return verdicts
    with contextlib.ExitStack() as stack:
        try:
            holding = stack.enter_context(Holding(found.path, Processes()))
        except UserError as error:
            raise UserError(str(error).replace("--workdir=", "--checkpoint=", 1)) from error
        # What it has saved since the first look is seen now.
        verdicts = plan(find(checkpoint), keep, keep_every, damaged)
        for verdict in verdicts:
            say(verdict)
            if verdict.goes:
                holding.check()
                _delete(verdict.path)
    return verdicts


def _delete(path: Folder) -> None:
    delete(path)
    if left := files.sizes(path):
        raise UserError(
            f"{path} could not be deleted ({len(left):,} of its files are still there); see that "
            "you may write there."
        )
