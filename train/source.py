"""What ``checkpoint.restore_from`` stands for: the same step whenever a run begins anew."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs.errors import UserError
from configs.folders import Folder
from model import checksums
from model.manifest import EMA, MODEL, STATE, digest_of
from model.saved import Saved
from train import events, metrics, run_file
from train.opening import open_together
from train.processes.group import Processes


def open_source(
    workdir: Folder,
    config: ConfigDict,
    processes: Processes,
    say: Callable[[str], None],
    writes: bool = True,
) -> Saved:
    """Opens what a run begins from, and remembers which step that is.

    Of a run that trains on, another would be the newest when this one is killed before its first
    save, or goes back to its beginning.

    Args:
      workdir: of the run that begins.
      config: of it.
      processes: of it.
      say: is told of each step that is passed over.
      writes: whether to remember it.

    Raises:
      UserError: ``checkpoint.restore_from`` does not serve, or is no longer what it was.
    """
    given = config.checkpoint.restore_from
    item = EMA if config.checkpoint.restore_ema else MODEL
    before = processes.told(lambda: _remembered(workdir))
    field = "checkpoint.restore_from"
    if before is None:
        saved = open_together(given, processes, (item,), field, say)
        about = dict(path=str(saved.path), step=saved.step, digest=_digest(saved, item))
        if writes:
            processes.told(lambda: run_file.write(workdir, begun_from=about))
        return saved
    path = before["path"]
    try:
        saved = open_together(path, processes, (item,), field)
    except UserError as error:
        raise UserError(_changed(workdir, path, f"which cannot be opened now: {error}")) from error
    if _digest(saved, item) != before["digest"]:
        raise UserError(_changed(workdir, path, "which holds something else now"))
    return saved


def _remembered(workdir: Folder) -> dict[str, Any] | None:
    """Returns what a run has begun from; None where it has taken no step, or is of older code."""
    found = run_file.read(workdir).get("begun_from")
    has_begun = events.read(workdir) or metrics.read(workdir)
    return found if has_begun else None


def _digest(saved: Saved, item: str) -> str:
    """Returns the SHA-256 of what is taken: an item with its config and tokenizer."""
    held = checksums.of_items(saved.manifest, (item,))
    return digest_of({n: dataclasses.asdict(file) for n, file in held.items() if n != STATE})


def _changed(workdir: Folder, path: str, how: str) -> str:
    return (
        f"--workdir={workdir} has begun from {path}, {how}; bring it back, or name another workdir."
    )
