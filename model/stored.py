"""Arrays of a saved step, written and read by Orbax, which is known here alone.

Arrays go by name, as "blocks.0.attention.query"; nothing is unpickled. Orbax v1 is experimental:
its names have moved between versions.
"""

import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Container, Iterable
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import NamedSharding

from configs.folders import Folder
from model.orbax_paths import written_as
from model.reading import CHUNK, bytes_at_once

Shapes = dict[str, tuple[int, ...]]


def write(path: Folder, items: dict[str, dict[str, jax.Array]]) -> Callable[[], None]:
    """Begins to write the arrays of each item: when this returns, they may be overwritten.

    All processes of a run call it. Arrays lie in ``path`` from the first on: it is whoever
    calls that says when they are a step.

    Returns:
      A function that returns when all is written, and raises what kept it from being.
    """
    context = ocp.Context()
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    _without_tracebacks()
    with context:
        answer = ocp.save_checkpointables_async(written_as(path), items)

    return answer.result


def check_joined(items: Iterable[str], names: Container[str]) -> None:
    """Checks that what the processes have written of each item was joined, without which none is.

    Args:
      items: that were written.
      names: of the files of the step.

    Raises:
      OSError: of one it was not, of which Orbax only warns.
    """
    for item in items:
        if f"{item}/manifest.ocdbt" not in names:
            raise OSError(f"the arrays of {item} were not joined")


def own_files(names: list[str], index: int) -> list[str]:
    """Returns those of a step's files that one of the processes has written; 0 wrote the rest."""

    def writer(name: str) -> int:
        marks = (part.rpartition("process_") for part in name.split("/"))
        return next((int(number) for _, mark, number in marks if mark and number.isdigit()), 0)

    return [name for name in names if writer(name) == index]


def read(path: Folder, item: str, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads arrays of an item with the dtypes and shardings of ``wanted``, and no others."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    held = ocp.checkpointables_metadata(written_as(path)).metadata[item]
    context.memory.read_concurrent_bytes = bytes_at_once(held, wanted)
    _without_tracebacks()
    with context:
        return ocp.load_checkpointables(written_as(path), {item: wanted})[item]


def arrays(path: Folder, item: str) -> dict[str, dict[str, Any]]:
    """Returns the shape and dtype of each array of an item, as a manifest writes them."""
    held = ocp.checkpointables_metadata(written_as(path)).metadata[item]
    return {
        name: dict(shape=list(array.shape), dtype=jax.numpy.dtype(array.dtype).name)
        for name, array in held.items()
    }


def placed(leaf: Any, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """Returns an abstract array with its sharding on a mesh."""
    spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


_LEFT_BEHIND = re.compile("Event loop is closed|coroutine .* was never awaited")


@functools.cache
def _without_tracebacks() -> None:
    """Leaves it to who calls to say what failed.

    What a write raises, Orbax' threads also log; and those parts of it that are still on their
    way when it has failed find its event loop closed, which Python would show for each of them.
    """
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(lambda record: record.exc_info is None)
    warnings.filterwarnings("ignore", _LEFT_BEHIND.pattern, RuntimeWarning)
    shown = sys.unraisablehook

    def show(about: Any) -> None:
        if not _LEFT_BEHIND.search(str(about.exc_value)):
            shown(about)

    sys.unraisablehook = show
