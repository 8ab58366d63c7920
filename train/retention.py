"""Which steps of a run stay: the newest, and some for good."""

import re

from ml_collections import ConfigDict

from configs import files
from configs.folders import Folder
from model import manifest
from model.manifest import STEPS, is_written
from model.saving import delete


def thin(workdir: Folder, keep: ConfigDict, saved: int) -> None:
    """Deletes all but the newest whole steps and those for good; the one just saved always stays.

    Args:
      workdir: of the run.
      keep: ``config.checkpoint``.
      saved: the step that was just saved. Later ones were passed over as damaged, though their
        sizes are right, and count for nothing.
    """
    whole = [step for step in manifest.whole_steps(workdir) if step <= saved]
    for step in set(whole) - kept(whole, keep.keep, keep.keep_every):
        delete(workdir / STEPS / str(step))
    sweep_up(workdir)


def kept(whole: list[int], keep: int, keep_every: int) -> set[int]:
    """Returns which of the whole steps, oldest first, stay: the newest, and some for good."""
    stay = set(whole[-max(1, keep) :])
    return stay | {step for step in whole if keep_every and step % keep_every == 0}


def sweep_up(workdir: Folder) -> None:
    """Deletes what a save or a deletion that was cut off left behind.

    Nothing is on its way then. A folder without a manifest is no step; one after the newest whole
    step may be what is left of a newer one, and stays until there is one after it, as does what
    Orbax began under another name. A damaged step stays: some of it may serve.
    """
    whole = manifest.whole_steps(workdir)
    stay = set(map(str, whole))
    for name in files.names(workdir / STEPS):
        found = re.fullmatch(r"(0|[1-9][0-9]*)(\.orbax-checkpoint-tmp.*)?", name)
        if not found or not whole or int(found[1]) > whole[-1] or name in stay:
            continue
        if not is_written(workdir / STEPS / name):
            delete(workdir / STEPS / name)
