"""Saved steps and models, opened: what they hold, and their arrays on a mesh."""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError, first_line
from configs.files import is_folder, read_text
from configs.folders import Folder, run_folder
from model import checksums, manifest, stored
from model.config import ModelConfig
from model.manifest import CONFIG, EMA, MODEL, STATE, STEPS, TOKENIZER, Manifest
from model.parameter import by_name, named_arrays, with_arrays
from model.transformer import Transformer
from text import tokenizers
from text.tokenizers import Tokenizer


class Damaged(UserError):
    """A step or a model does not hold what was written; another may."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A whole step or model, its arrays not yet read."""

    path: Folder
    manifest: Manifest
    config: ConfigDict  # the resolved config that it was trained with
    tokenizer: Tokenizer | None  # None for a model of random tokens
    step: int | None  # optimizer steps taken; None for a saved model
    corpus: str | None  # digest of the text and tokens that it was trained on, where it is known
    skipped: tuple[tuple[int, int], ...]  # first and last of the batches that it left out
    verified: set[str]  # items whose files hold what was written

    @property
    def model_config(self) -> ModelConfig:
        """The shape of its network."""
        return ModelConfig.from_config(self.config.model, 1, self.config.length)

    def load_model(self, mesh: Mesh, ema: bool = False) -> Transformer:
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
            abstract = jax.eval_shape(lambda k: Transformer(config, k), jax.random.key(0))
        arrays = self.load(EMA if ema else MODEL, named_arrays(abstract), mesh)
        return with_arrays(abstract, arrays)

    def holds(self, item: str) -> bool:
        """Tells whether an item was saved."""
        return any(name.startswith(f"{item}/") for name in self.manifest.files)

    def load(self, item: str, abstract: PyTree, mesh: Mesh) -> PyTree:
        """Reads an item, such as "model", with the structure, dtypes and shardings of ``abstract``.

        Arrays that ``abstract`` does not name are left.

        Raises:
          UserError: an array is missing or has another shape, a file cannot be read, or does not
            hold what was written.
        """
        wanted, shapes = by_name(abstract), self.shapes(item)
        for name, leaf in wanted.items():
            # The key of a random generator is stored as the numbers in it.
            is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            shape = jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape
            saved = shapes.get(name)
            if saved != tuple(shape):
                holds = f"has no array {name}" if saved is None else f"holds {name} as {saved}"
                raise UserError(
                    f"{self.path / item} {holds} and the config asks for {tuple(shape)}; "
                    "restore it into the config that it was saved with."
                )
        if item not in self.verified:
            verify(self.path, self.manifest, (item,))
            self.verified.add(item)
        with self._reading(item):
            placed = {name: stored.placed(leaf, mesh) for name, leaf in wanted.items()}
            arrays = stored.read(self.path, item, placed)
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])

    def shapes(self, item: str) -> stored.Shapes:
        """Returns the shape of each array of an item, "model" or "optimizer", by its name.

        Raises:
          UserError: the item is missing, or cannot be read.
        """
        return {name: tuple(about["shape"]) for name, about in self.arrays(item).items()}

    def arrays(self, item: str) -> dict[str, dict[str, Any]]:
        """Returns the shape and dtype of each array of an item, by its name.

        Raises:
          UserError: the item is missing, or cannot be read.
        """
        held = self.manifest.arrays.get(item)
        if held is not None:
            return held
        with self._reading(item):
            if not self.holds(item):
                raise KeyError("it was not saved, or is deleted")
            return stored.arrays(self.path, item)

    @contextlib.contextmanager
    def _reading(self, item: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise whatever the damage causes
            raise UserError(
                f"{self.path / item} is missing or cannot be read ({first_line(error)}); "
                "use another step, or a saved model for its parameters alone."
            ) from error


def verify(path: Folder, held: Manifest, items: tuple[str, ...]) -> None:
    """Checks that the files of some items, and the plain ones, hold what was written.

    Args:
      path: of the step or model.
      held: its manifest.
      items: such as "model".

    Raises:
      Damaged: some do not.
    """
    if found := checksums.damaged(path, checksums.of_items(held, items)):
        raise Damaged(damage(path / found[0]))


def damage(file: Folder) -> str:
    """Returns the sentence for a file that is damaged."""
    return (
        f"{file} does not hold what was written; use another step, or copy this one again from "
        "where it came."
    )


def candidates(checkpoint: str | os.PathLike[str], field: str = "--checkpoint") -> list[Folder]:
    """Returns the folders of the steps that a run's folder may stand for, the newest first.

    A step, or a saved model, stands for itself. Their sizes are right; what they hold is not yet
    looked at.

    Raises:
      UserError: there is no such folder, or nothing whole in it.
    """
    path = run_folder(os.fspath(checkpoint), field)
    if not is_folder(path):
        raise UserError(f"{field}={checkpoint} is no folder; name a run, a step or a model.")
    if manifest.whole(path):
        return [path]
    # One that was reduced to a saved model opens too.
    steps = [n for n in manifest.steps(path) if manifest.whole(path / STEPS / str(n))]
    if not steps:
        raise UserError(
            f"{field}={checkpoint} is neither a run with a finished save, nor a step, "
            "nor a saved model; name one of these."
        )
    return [path / STEPS / str(step) for step in reversed(steps)]


def open_step(path: Folder, items: tuple[str, ...] = (MODEL,), is_verified: bool = False) -> Saved:
    """Opens a step or a saved model whose files hold what was written.

    Args:
      path: its folder.
      items: whose files are looked at, where it has them; ``load`` looks at others itself.
      is_verified: whether that has been done.

    Raises:
      Damaged: it is not whole, or a file does not hold what was written.
      UserError: this version cannot read it.
    """
    held = manifest.whole(path)
    if held is None:
        raise Damaged(f"{path} is not whole; use another step.")
    if not is_verified:
        verify(path, held, items)
    config = resolved.from_json(read_text(path / CONFIG), str(path / CONFIG))
    tokenizer = None
    if TOKENIZER in held.files:
        tokenizer = tokenizers.from_json(read_text(path / TOKENIZER), str(path / TOKENIZER))
    step = corpus = None
    skipped: tuple[tuple[int, int], ...] = ()
    if STATE in held.files:
        step, corpus, skipped = _read_state(path)
    return Saved(path, held, config, tokenizer, step, corpus, skipped, set(items))


def _read_state(path: Folder) -> tuple[int, str | None, tuple[tuple[int, int], ...]]:
    """Returns what ``state.json`` of a step holds: its step, its text, what it left out."""
    try:
        about = json.loads(read_text(path / STATE))
        step = int(about["step"])
        skipped = tuple((int(first), int(last)) for first, last in about.get("skipped", ()))
        if manifest.misnamed(path, step):
            raise ValueError(step)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path / STATE} is damaged; use another step.") from error
    return step, about.get("corpus"), skipped


def open_saved(checkpoint: str | os.PathLike[str], field: str = "--checkpoint") -> Saved:
    """Opens the folder of a run (its newest whole step), of a step, or of a saved model.

    A step whose files do not hold what was written is passed over, with a warning.

    Raises:
      UserError: there is no such folder, or nothing whole in it.
    """
    passed: list[Damaged] = []
    for path in candidates(checkpoint, field):
        try:
            found = open_step(path)
        except Damaged as error:
            passed.append(error)
            continue
        for mistake in passed:
            warnings.warn(str(mistake), stacklevel=2)
        return found
    raise passed[0]
