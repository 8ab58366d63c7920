"""Steps and models written: by a thread, whole or not at all; and deleted."""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jaxtyping import PyTree
from orbax.checkpoint import multihost

from configs.errors import UserError, first_line
from configs.files import write_text
from model.manifest import FORMAT, MANIFEST, is_whole
from model.parameter import by_name
from model.reading import CHUNK

_LONGEST_WAIT = 3_600_000  # milliseconds, until process 0 has written the plain files

_copy = jax.jit(lambda array: array.copy())


def save(path: Path, items: dict[str, PyTree], documents: dict[str, str]) -> Future[None]:
    """Begins to write a step or a model: when this returns, its arrays may be overwritten.

    ``items`` are the arrays of each Orbax item, ``documents`` the texts of the plain files; there
    has to be room (``make_room``). All processes of a run call it.

    Returns:
      A future, done when the save is whole; it raises UserError where it could not be written.

    Raises:
      UserError: nothing can be written there.
    """
    if jax.default_backend() == "cpu":  # it would lend its arrays to the writer
        items = jax.tree.map(_copy, items)
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    try:
        with context:
            arrays = ocp.save_checkpointables_async(path, {n: by_name(t) for n, t in items.items()})
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name a workdir that can."
        ) from error

    barrier = multihost.get_barrier_sync_fn()

    def finish() -> None:
        try:
            arrays.result()
            if jax.process_index() == 0:
                for name, text in documents.items():
                    write_text(path / name, text)
                write_manifest(path)
            barrier(key=f"whole {path}", timeout_ms=_LONGEST_WAIT)
        except Exception as error:  # Orbax and tensorstore raise whatever the disk causes
            raise UserError(
                f"{path} could not be written ({first_line(error)}); what was saved before is "
                "whole: free space or name another workdir, and start again."
            ) from error

    return ThreadPoolExecutor(1, "save").submit(finish)


def make_room(path: Path) -> bool:
    """Deletes a step that is not whole; returns whether none is there now."""
    if is_whole(path):
        return False
    if path.exists():
        delete(path)
    return True


def delete(path: Path) -> None:
    """Deletes a step: its manifest first, so that a half-deleted one does not exist."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def write_manifest(path: Path) -> None:
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    sizes = {str(file.relative_to(path)): file.stat().st_size for file in files}
    manifest = dict(format=FORMAT, jax=jax.__version__, files=sizes)
    write_text(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
