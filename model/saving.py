"""Steps and models written: by a thread, whole or not at all; and deleted."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jaxtyping import Array, PyTree

from configs.errors import UserError, first_line
from model.manifest import FORMAT, MANIFEST, is_whole
from model.parameter import path_name


class Saving:
    """A save on its way: arrays are copied when this returns and written by a thread."""

    def __init__(self, path: Path, items: dict[str, PyTree], documents: dict[str, str]):
        """Begins to write a step or a model.

        Args:
          path: the folder, whose parent exists; a folder that is not whole is replaced.
          items: arrays of each Orbax item.
          documents: texts of the plain files.
        """
        self.path = path
        self._documents = documents
        self._error: BaseException | None = None
        if path.exists() and not is_whole(path):
            delete(path)
        named = {item: by_name(_held(tree)) for item, tree in items.items()}
        try:
            self._response = ocp.save_checkpointables_async(path, named)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); name a workdir that can."
            ) from error
        self._thread = threading.Thread(target=self._finish, name=f"save {path.name}")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the save is whole.

        Raises:
          UserError: it could not be written.
        """
        self._thread.join()
        if self._error is not None:
            raise UserError(
                f"{self.path} could not be written ({first_line(self._error)}); what was saved "
                "before is whole: free space or name another workdir, and start again."
            ) from self._error

    def _finish(self) -> None:
        try:
            self._response.result()
            if jax.process_index() == 0:
                for name, text in self._documents.items():
                    write_text(self.path / name, text)
                write_manifest(self.path)
        except BaseException as error:
            self._error = error


def delete(path: Path) -> None:
    """Deletes a step: its manifest first, so that a half-deleted one does not exist."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); free space, or name another folder."
        ) from error


def write_manifest(path: Path) -> None:
    files = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    manifest = dict(format=FORMAT, jax=jax.__version__, files=files)
    write_text(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def by_name(tree: PyTree) -> dict[str, Any]:
    """Names each leaf by its path, as "adamw.mu.blocks.0.attention.query"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def _held(tree: PyTree) -> PyTree:
    """Copies arrays that a CPU would lend to the writer while the next step overwrites them."""
    if jax.default_backend() != "cpu":
        return tree
    return jax.tree.map(_copy, tree)


@jax.jit
def _copy(array: Array) -> Array:
    return array.copy()
