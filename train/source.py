"""What ``checkpoint.restore_from`` stands for: the same step whenever a run begins anew.

Of a run that trains on, another would be the newest when this one is killed before its first save,
or goes back to its beginning.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs.errors import UserError
from configs.folders import as_folder
from model import manifest
from model.manifest import CONFIG, EMA, MODEL, TOKENIZER, Manifest, digest_of
from model.saved import Saved, candidates
from train import run_file
from train.opening import open_together
from train.processes.group import Processes

_FIELD = "checkpoint.restore_from"


def open_source(
    config: ConfigDict,
    before: dict[str, Any] | None,
    processes: Processes,
    say: Callable[[str], None],
) -> tuple[Saved, dict[str, Any]]:
    """Opens what a run begins from.

    Args:
      config: of the run.
      before: what it is known to have begun from, as this function returned it; None: nothing.
      processes: of the run.
      say: is told of each step that is passed over.

    Returns:
      The step or model, and what is to be remembered of it.

    Raises:
      UserError: ``checkpoint.restore_from`` does not serve, or does not lead to what it was.
    """
    fields = config.checkpoint
    given = dict(restore_from=fields.restore_from, restore_ema=fields.restore_ema)
    item = EMA if fields.restore_ema else MODEL
    path = fields.restore_from
    if before is not None and all(before[name] == value for name, value in given.items()):
        path = processes.told(lambda: _found_again(before, item))
    saved = open_together(path, processes, (item,), _FIELD, say)
    digest = _digest(saved.manifest, item)
    return saved, given | dict(path=str(saved.path), step=saved.step, digest=digest)


def _found_again(before: dict[str, Any], item: str) -> str:
    """Returns the path of what a run began from: where it was, or where its run is now."""
    paths = [as_folder(before["path"])]
    with contextlib.suppress(UserError):
        paths += candidates(before["restore_from"], _FIELD)
    for path in paths:
        held = manifest.whole(path)
        if held is not None and _digest(held, item) == before["digest"]:
            return str(path)
    raise UserError(
        f"{_FIELD}={before['restore_from']} stood for {before['path']} when this run began, which "
        "is not there any more, or is another; bring it back, or, to begin from what is there now, "
        f"delete {run_file.NAME} in the run's folder."
    )


def _digest(held: Manifest, item: str) -> str:
    """Returns the SHA-256 of what is taken: an item with its config and tokenizer."""
    files = {
        name: dataclasses.asdict(file)
        for name, file in held.files.items()
        if name in (CONFIG, TOKENIZER) or name.startswith(f"{item}/")
    }
    return digest_of(files)
