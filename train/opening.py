"""Saved steps opened by all processes of a run, each of which verifies a share of the bytes."""

import functools
from collections.abc import Callable

from configs.errors import UserError
from configs.folders import Folder, as_folder
from model import checksums, manifest
from model.manifest import EMA, MANIFEST, MODEL, OPTIMIZER, RECENT
from model.saved import Saved, candidates, open_step
from train.processes.alike import eventually
from train.processes.group import Processes

ITEMS = (MODEL, OPTIMIZER, EMA, RECENT)  # of a run that goes on


def open_together(
    checkpoint: str,
    processes: Processes,
    items: tuple[str, ...] = (MODEL,),
    field: str = "--checkpoint",
    say: Callable[[str], None] = lambda sentence: None,
) -> Saved:
    """Opens a run (its newest step that holds what was written), a step, or a saved model.

    Args:
      checkpoint: its folder.
      processes: that open it.
      items: that will be read.
      field: what gave it, for errors.
      say: is told of each step that is passed over.

    Raises:
      UserError: there is none, or none that is whole.
    """
    found = processes.told(lambda: [str(path) for path in candidates(checkpoint, field)])
    paths = [as_folder(path) for path in found]
    said: list[str] = []
    saved = first_whole(paths, items, processes, said.append)
    if saved is None:
        raise UserError(f"{said[0]}; use another step, or copy it again from where it came.")
    for sentence in said:
        say(sentence)
    return saved


def first_whole(
    paths: list[Folder],
    items: tuple[str, ...],
    processes: Processes,
    passed: Callable[[str], None],
) -> Saved | None:
    """Returns the first step that holds what was written, or None.

    Args:
      paths: of steps.
      items: that will be read.
      processes: that verify it.
      passed: is told of each that does not.
    """
    for path in paths:
        bad = _damaged(path, items, processes)
        if not bad:
            return processes.together(functools.partial(open_step, path, items, True))
        passed(f"step {path.name} does not hold what was written ({bad[0]})")
    return None


def _damaged(path: Folder, items: tuple[str, ...], processes: Processes) -> list[str]:
    """Returns the files of a step that are damaged, as the processes find together."""

    def look() -> list[str]:
        held = eventually(lambda: manifest.whole(path))
        if held is None:
            return [MANIFEST]
        files = checksums.of_items(held, items)
        return checksums.damaged(path, checksums.share(files, processes.index, processes.count))

    return sorted({name for found in processes.shared(look) for name in found})
