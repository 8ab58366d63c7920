"""A run that begins with the parameters of another, whose network differs."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from configs import resolved
from configs.errors import UserError
from model.manifest import CONFIG, EMA, MODEL, TOKENIZER
from model.parameter import named_arrays
from model.saved import open_saved
from model.saving import save
from model.transformer import Transformer
from tests.model import small
from tests.train import tiny
from train.starting import start_from

GROUPED = {"model.num_kv_heads": 4, "model.biases": True, "model.norm": "layernorm"}


def kept(folder, changes, tokenizer=None, ema=False):
    """Saves a network whose every parameter is random; returns its folder and itself."""
    config = tiny.config(changes)
    model = small.drawn(tiny.model_config(config))
    documents = {CONFIG: resolved.to_json(config)}
    if tokenizer is not None:
        documents[TOKENIZER] = tokenizer.to_json()
    items = {MODEL: named_arrays(model)}
    if ema:
        items[EMA] = {n: a.astype(np.float32) + 1 for n, a in named_arrays(model).items()}
    save(folder, items, documents).result()
    return folder, model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder and the network of a config, saved once."""

    @functools.cache
    def of(**changes):
        folder = tmp_path_factory.mktemp("saved") / "model"
        return kept(folder, {n.replace("__", "."): v for n, v in changes.items()})

    return lambda changes: of(**{n.replace(".", "__"): v for n, v in changes.items()})


def begin(folder, changes, tokenizer=None, **sizes):
    """Returns the network that a run begins with, and what it is told."""
    config = tiny.config({**changes, "checkpoint.restore_from": str(folder)})
    mesh, shape = tiny.mesh(**sizes), tiny.model_config(config)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda key: Transformer(shape, key), jax.random.key(0))
        model, lines = start_from(str(folder), config, abstract, tokenizer, mesh)
    for found, wanted in zip(jax.tree.leaves(model), jax.tree.leaves(abstract), strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert found.sharding.spec == wanted.sharding.spec
    return model, lines


def fresh(changes, seed=0):
    return arrays(Transformer(tiny.model_config(tiny.config(changes)), jax.random.key(seed)))


def arrays(model):
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def same_logits(old, new, atol=1e-5):
    tokens = small.tokens(dataclasses.replace(old.config, vocab_size=60))
    expected, found = small.true_logits(old, tokens), small.true_logits(new, tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
