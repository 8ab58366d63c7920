"""Steps and models written: by a thread, whole or not at all; and deleted."""

import hashlib
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jaxtyping import PyTree

from configs import files
from configs.errors import UserError, disk_reason
from configs.files import write_text
from configs.folders import Folder
from model import checksums, manifest, stored
from model.manifest import FORMAT, MANIFEST, File, Manifest
from model.parameter import by_name

T = TypeVar("T")


@runtime_checkable
class Group(Protocol):
    """The processes that save together, as threads of them speak to each other, by topics."""

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """Returns what each says of a topic, when all have."""

    def tell(self, topic: str, value: Any) -> None:
        """Says something of a topic, and waits for nobody."""

    def heard(self, topic: str) -> dict[int, Any]:
        """Returns what has been told of a topic."""


class Alone(Group):
    """One process, with nobody to speak to."""

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """Returns what it says itself."""
        return [value]

    def tell(self, topic: str, value: Any) -> None:
        """Tells nobody."""

    def heard(self, topic: str) -> dict[int, Any]:
        """Hears nothing."""
        return {}


_numbers = itertools.count()  # of the saves of this process; all processes save alike

_copy = jax.jit(lambda array: array.copy())


def save(
    path: Folder,
    items: dict[str, PyTree],
    documents: dict[str, str],
    step: int | None = None,
    made: dict[str, Any] | None = None,
    group: Group | None = None,
    after: Callable[[], None] = lambda: None,
) -> Future[Manifest]:
    """Begins to write a step or a model: when this returns, its arrays may be overwritten.

    Nothing may be there. All processes of a run call it. Each takes the checksums of what it
    wrote itself, and when all have, process 0 writes the manifest. What one of them cannot write,
    none has.

    Args:
      path: of its folder.
      items: the arrays of each Orbax item.
      documents: the texts of the plain files.
      step: optimizer steps taken; None for a model.
      made: how, for the manifest.
      group: of all processes that save.
      after: is called by process 0 when it is whole.

    Returns:
      A future, done when the save is whole; in all processes it raises UserError where one of
      them could not write.
    """
    named = {item: by_name(tree) for item, tree in items.items()}
    shapes = {
        item: {name: _about(array) for name, array in arrays.items()}
        for item, arrays in named.items()
    }
    if jax.default_backend() == "cpu":  # it would lend its arrays to the writer
        named = jax.tree.map(_copy, named)
    index, topic = jax.process_index(), f"save {next(_numbers)}"
    group = group or Alone()
    written: Callable[[], Any] | None = None
    mistake: Exception | None = None
    try:
        written = stored.write(path, named)
    except Exception as error:
        mistake = error

    def together(stage: str, act: Callable[[], T]) -> list[T]:
        """Returns what each process has made, when all have; a failure of one is everyone's."""
        value: Any = None
        failed = ""
        cause: Exception | None = None
        try:
            value = act()
        except _Elsewhere as error:
            failed, cause = str(error), error
        except Exception as error:  # Orbax and tensorstore raise whatever the disk causes
            failed, cause = _sentence(path, error), error
            group.tell(topic, failed)
        found = group.exchange(f"{topic} {stage}", [failed, value])
        if failed := next((said for said, _ in found if said), ""):
            raise UserError(failed) from cause
        return [said for _, said in found]

    def write() -> dict[str, tuple[int, str]]:
        if written is None:
            raise mistake or OSError("nothing was written")
        _wait_for(written, lambda: group.heard(topic))
        if index == 0:
            for name, text in documents.items():
                write_text(path / name, text)
        lengths = files.sizes(path)
        mine = checksums.hashed(path, stored.own_files(list(lengths), index))
        return {name: (lengths[name], digest) for name, digest in mine.items()}

    def finish() -> Manifest:
        parts = together("written", write)
        merged = {name: File(*about) for part in parts for name, about in part.items()}
        whole = Manifest(FORMAT, step, merged, shapes, made or {})

        def publish() -> None:
            if index == 0:
                _check_documents(documents, merged, path)
                stored.check_joined(items, merged)
                manifest.write(path, whole)
                after()

        together("whole", publish)
        return whole

    return ThreadPoolExecutor(1, "save").submit(finish)


class _Elsewhere(Exception):
    """Another process could not write, and says so."""


def _wait_for(written: Callable[[], Any], failures: Callable[[], dict[int, str]]) -> None:
    """Returns when this process has written, unless another could not.

    Orbax would wait for that one for many minutes, and all others with it.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            written()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    # A daemon: the end of the process is not to wait for it.
    threading.Thread(target=run, name="orbax", daemon=True).start()
    while not wait([done], timeout=1.0).done:
        if failed := failures():
            raise _Elsewhere(next(iter(failed.values())))
    done.result()


def _about(array: jax.Array) -> dict[str, Any]:
    """Returns an array's shape and dtype as it is stored: the key of a generator as numbers."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.eval_shape(jax.random.key_data, array)
    return dict(shape=list(array.shape), dtype=array.dtype.name)


def _sentence(path: Folder, error: Exception) -> str:
    return (
        f"{path} could not be written ({disk_reason(error)}); what was saved before is whole: free "
        "space or name another workdir, and start again."
    )


def _check_documents(documents: dict[str, str], found: dict[str, File], path: Folder) -> None:
    """Checks that the plain files hold what was to be written."""
    for name, text in documents.items():
        if found[name].sha256 != hashlib.sha256(text.encode()).hexdigest():
            raise OSError(f"{path / name} does not hold what was written")


def delete(path: Folder) -> None:
    """Deletes a step: its manifest first, so that a half-deleted one does not exist."""
    files.delete(path / MANIFEST)
    files.delete(path)
