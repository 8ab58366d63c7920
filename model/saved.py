"""Saved models and steps on disk. The only module that knows Orbax.

A saved step is one folder: Orbax items ``model``, ``optimizer`` and, where there is an average of
the parameters, ``ema``; plain ``config.json``, ``tokenizer.json`` and ``state.json``, and
``manifest.json``, written last: a folder without a manifest does not exist. A saved model is the
same without ``optimizer`` and ``state.json``, which may be deleted.
Arrays go by name, as "blocks.0.attention.query"; nothing is unpickled.
"""

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError
from model.axes import ShardingRules
from model.config import ModelConfig
from model.parameter import parameters, path_name
from model.transformer import Transformer
from text import tokenizers
from text.tokenizers import Tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
STATE = "state.json"
MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"  # the Orbax items
STEPS = "checkpoints"  # the folder of a workdir that holds its steps


@dataclasses.dataclass(frozen=True)
class Saved:
    """A whole step or model on disk, its arrays not yet read.

    Attributes:
      path: its folder.
      config: the resolved config that it was trained with.
      tokenizer: None for a model of random tokens.
      step: optimizer steps taken; None for a saved model.
      corpus: digest of the text and tokens that it was trained on; None where it is not known.
    """

    path: Path
    config: ConfigDict
    tokenizer: Tokenizer | None
    step: int | None
    corpus: str | None = None

    @property
    def model_config(self) -> ModelConfig:
        """The shape of its network."""
        return ModelConfig.from_config(self.config.model, 1, self.config.length)

    def load_model(
        self, mesh: Mesh, rules: ShardingRules | None = None, ema: bool = False
    ) -> Transformer:
        """Reads the model, or the average of its parameters, whatever mesh it was saved from.

        Raises:
          UserError: the arrays are not those of its config, or cannot be read; or no average is.
        """
        if ema and not self.holds(EMA):
            raise UserError(
                f"{self.path} holds no average of the parameters for --ema; leave the flag out, "
                "or train with optim.ema."
            )
        config = self.model_config
        with jax.set_mesh(mesh):
            abstract = jax.eval_shape(lambda k: Transformer(config, k, rules), jax.random.key(0))
        names = [name for name, _ in parameters(abstract)]
        arrays = self.load(
            EMA if ema else MODEL, dict(zip(names, jax.tree.leaves(abstract), strict=True)), mesh
        )
        leaves = [arrays[name] for name in names]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def holds(self, item: str) -> bool:
        """Tells whether an item was saved."""
        return (self.path / item).is_dir()

    def load(self, item: str, abstract: PyTree, mesh: Mesh) -> PyTree:
        """Reads one item.

        Args:
          item: "model", "optimizer" or "ema".
          abstract: shapes, dtypes and shardings that are wanted, in the structure wanted.
          mesh: the devices behind the shardings.

        Raises:
          UserError: an array is missing or has another shape, or a file cannot be read.
        """
        wanted = _by_name(abstract)
        self._check_shapes(item, wanted)

        def placed(leaf: Any) -> jax.ShapeDtypeStruct:
            spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        try:
            found = ocp.load_checkpointables(
                self.path, {item: {name: placed(leaf) for name, leaf in wanted.items()}}
            )[item]
        except Exception as error:  # Orbax and tensorstore raise whatever the damage causes
            raise UserError(
                f"{self.path / item} cannot be read ({_first_line(error)}); "
                "it is damaged: use another step."
            ) from error
        leaves = [found[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def shapes(self, item: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array of an item, "model" or "optimizer", by its name.

        Raises:
          UserError: the item is missing, or cannot be read.
        """
        try:
            arrays = ocp.checkpointables_metadata(self.path).metadata[item]
            return {name: tuple(array.shape) for name, array in arrays.items()}
        except Exception as error:  # Orbax and tensorstore raise whatever the damage causes
            raise UserError(
                f"{self.path / item} is missing or cannot be read ({_first_line(error)}); "
                "use another step, or a saved model for its parameters alone."
            ) from error

    def _check_shapes(self, item: str, wanted: dict[str, Any]) -> None:
        there = self.shapes(item)
        for name, leaf in wanted.items():
            if name not in there:
                raise UserError(
                    f"{self.path / item} has no array {name}; "
                    "restore it into the config that it was saved with."
                )
            # The key of a random generator is stored as the numbers in it.
            is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            shape = jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape
            if there[name] != tuple(shape):
                raise UserError(
                    f"{self.path / item} holds {name} as {there[name]} and the config "
                    f"asks for {tuple(shape)}; restore it into the config it was saved with."
                )


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
        named = {item: _by_name(_held(tree)) for item, tree in items.items()}
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
                f"{self.path} could not be written ({_first_line(self._error)}); what was saved "
                "before is whole: free space or name another workdir, and start again."
            ) from self._error

    def _finish(self) -> None:
        try:
            self._response.result()
            if jax.process_index() == 0:
                for name, text in self._documents.items():
                    write_text(self.path / name, text)
                _write_manifest(self.path)
        except BaseException as error:
            self._error = error


def open_saved(checkpoint: str | os.PathLike[str], field: str = "--checkpoint") -> Saved:
    """Opens a workdir (its newest whole step), a step, or a saved model.

    Args:
      checkpoint: its folder.
      field: what named it, for errors.

    Raises:
      UserError: there is no such folder, or nothing whole in it.
    """
    path = Path(checkpoint).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"{field}={checkpoint} is no folder; name a run, a step or a model.")
    if not is_whole(path):
        steps = whole_steps(path)
        if not steps:
            raise UserError(
                f"{field}={checkpoint} is neither a run with a finished save, nor a step, "
                "nor a saved model; name one of these."
            )
        path = path / STEPS / str(steps[-1])
    config = resolved.from_json(read_text(path / CONFIG), str(path / CONFIG))
    has_words = (path / TOKENIZER).exists()
    tokenizer = tokenizers.load(path / TOKENIZER) if has_words else None
    step = corpus = None
    if (path / STATE).exists():
        try:
            about = json.loads(read_text(path / STATE))
            step, corpus = int(about["step"]), about.get("corpus")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / STATE} is damaged; use another step.") from error
    return Saved(path, config, tokenizer, step, corpus)


def is_whole(path: Path) -> bool:
    """Tells whether a folder is a finished save whose files all have their sizes.

    A step that was reduced to a saved model is whole.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["files"]
        if manifest["format"] > FORMAT:
            raise UserError(
                f"{path} has format {manifest['format']}, newer than this code's {FORMAT}; "
                "use the version that wrote it."
            )
        reduced = not (path / STATE).exists() and not (path / OPTIMIZER).exists()
        of_step = (STATE, f"{OPTIMIZER}{os.sep}")
        return all(
            (path / name).stat().st_size == size
            for name, size in sizes.items()
            if not (reduced and name.startswith(of_step))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def whole_steps(workdir: Path) -> list[int]:
    """Returns the whole steps of a workdir, oldest first."""
    return [step for step in _steps(workdir) if is_whole(workdir / STEPS / str(step))]


def damaged_steps(workdir: Path) -> list[int]:
    """Returns the steps of a workdir that were whole once, by their manifest, and are not now."""
    folder = workdir / STEPS
    return [
        step
        for step in _steps(workdir)
        if (folder / str(step) / MANIFEST).exists() and not is_whole(folder / str(step))
    ]


def _steps(workdir: Path) -> list[int]:
    folder = workdir / STEPS
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def delete(path: Path) -> None:
    """Deletes a step: its manifest first, so that a half-deleted one does not exist."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_manifest(path: Path) -> None:
    files = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    manifest = dict(format=FORMAT, jax=jax.__version__, files=files)
    write_text(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _by_name(tree: PyTree) -> dict[str, Any]:
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


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({_first_line(error)}); use another step."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
