"""Saved steps and models, opened: what they hold, and their arrays on a mesh.

Orbax is known here and in ``model.saving`` alone. Arrays go by name, as "blocks.0.attention.query";
nothing is unpickled.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError, first_line
from configs.files import read_text
from configs.folders import folder
from model.config import ModelConfig
from model.manifest import CONFIG, EMA, MODEL, STATE, STEPS, TOKENIZER, is_whole, whole_steps
from model.parameter import by_name, named_arrays, with_arrays
from model.reading import bytes_at_once
from model.transformer import Transformer
from text import tokenizers
from text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Saved:
    """A whole step or model on disk, its arrays not yet read."""

    path: Path  # its folder
    config: ConfigDict  # the resolved config that it was trained with
    tokenizer: Tokenizer | None  # None for a model of random tokens
    step: int | None  # optimizer steps taken; None for a saved model
    corpus: str | None  # digest of the text and tokens that it was trained on, where it is known

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
        return (self.path / item).is_dir()

    def load(self, item: str, abstract: PyTree, mesh: Mesh) -> PyTree:
        """Reads an item, such as "model", with the structure, dtypes and shardings of ``abstract``.

        Raises:
          UserError: an array is missing or has another shape, or a file cannot be read.
        """
        wanted, metadata = by_name(abstract), self._metadata(item)
        shapes = {name: tuple(array.shape) for name, array in metadata.items()}
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

        def placed(leaf: Any) -> jax.ShapeDtypeStruct:
            spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        context = ocp.Context()
        context.pytree.loading.partial_load = True  # what is not asked for is not read
        places = jax.tree.map(placed, wanted)
        context.memory.read_concurrent_bytes = bytes_at_once(metadata, places)
        with self._reading(item), context:
            arrays = ocp.load_checkpointables(self.path, {item: places})[item]
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])

    def shapes(self, item: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array of an item, "model" or "optimizer", by its name.

        Raises:
          UserError: the item is missing, or cannot be read.
        """
        return {name: tuple(array.shape) for name, array in self._metadata(item).items()}

    def _metadata(self, item: str) -> dict[str, Any]:
        """Returns what Orbax knows of each array of an item without reading it."""
        with self._reading(item):
            return dict(ocp.checkpointables_metadata(self.path).metadata[item])

    @contextlib.contextmanager
    def _reading(self, item: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise whatever the damage causes
            raise UserError(
                f"{self.path / item} is missing or cannot be read ({first_line(error)}); "
                "use another step, or a saved model for its parameters alone."
            ) from error


def open_saved(checkpoint: str | os.PathLike[str], field: str = "--checkpoint") -> Saved:
    """Opens the folder of a run (its newest whole step), of a step, or of a saved model.

    Raises:
      UserError: there is no such folder, or nothing whole in it.
    """
    path = folder(os.fspath(checkpoint), field)
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
    tokenizer = tokenizers.load(path / TOKENIZER) if (path / TOKENIZER).exists() else None
    step = corpus = None
    if (path / STATE).exists():
        try:
            about = json.loads(read_text(path / STATE))
            step, corpus = int(about["step"]), about.get("corpus")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / STATE} is damaged; use another step.") from error
    return Saved(path, config, tokenizer, step, corpus)
