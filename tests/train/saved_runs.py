"""Runs of saved steps made in a moment, without training, for tests of what looks after them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import resolved
from model.axes import ShardingRules
from model.parameter import named_arrays
from model.saving import save
from model.transformer import Transformer
from tests.train import tiny
from text.tokenizers import Tokenizer
from train.provenance import provenance

KEY = jax.random.key(7)  # of a generator that an optimizer of one's own keeps


def model(config: ConfigDict, seed: int, **sizes: int) -> Transformer:
    """Returns an untrained model on a mesh."""
    shape, rules = tiny.model_config(config), ShardingRules()
    with jax.set_mesh(tiny.mesh(**sizes)):
        return jax.jit(lambda key: Transformer(shape, key, rules))(jax.random.key(seed))


def write(
    run: Path,
    steps: Mapping[int, Transformer],
    config: ConfigDict,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Saves models as the steps of a run, with an average twice as large and an optimizer."""
    (run / "checkpoints").mkdir(parents=True)
    for step, model in steps.items():
        arrays = named_arrays(model)
        mesh = jax.tree.leaves(arrays)[0].sharding.mesh
        items: dict[str, Any] = dict(
            model=arrays,
            ema=jax.tree.map(lambda x: (2 * x).astype("float32"), arrays),
            optimizer=dict(count=jnp.int32(step), key=KEY),
        )
        documents = {
            "config.json": resolved.to_json(config),
            "state.json": json.dumps(dict(step=step, corpus="repeats")),
        }
        if tokenizer is not None:
            documents["tokenizer.json"] = tokenizer.to_json()
        made = provenance(mesh, config.seed)
        save(run / "checkpoints" / str(step), items, documents, step, made).result()


def largest(step: Path) -> Path:
    """Returns the largest file of a step's model."""
    return max(
        (f for f in (step / "model").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )


def flip(file: Path) -> None:
    """Changes a bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
