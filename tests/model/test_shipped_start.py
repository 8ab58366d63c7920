"""Every shipped config that fits here begins at ln V; test_start.py has a formula for the rest."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import book, gpt2, gpt3, induction, text, toy
from model.config import ModelConfig
from model.transformer import Transformer
from tests.model import small
from text import grammar

SHIPPED = {
    "toy": (toy.get_config(), len(grammar.vocabulary()) + 1),
    "book": (book.get_config(), 2048),
    "text:best": (text.get_config("best"), 65),
    "text:nanogpt": (text.get_config("nanogpt"), 65),
    "induction:1": (induction.get_config("1"), 64),
    "induction:2": (induction.get_config("2"), 64),
}
LARGE = {
    "gpt2:small": (gpt2.get_config("small"), 50257),
    "gpt3:125m": (gpt3.get_config("125m"), 50257),
}


def first_loss(config, vocab_size, rows, length):
    shape = ModelConfig.from_config(config.model, vocab_size, config.length)
    rng = np.random.default_rng(0)
    # Words of a text are as unequal as this (Zipf's law), and some follow themselves.
    weights = 1 / np.arange(1, vocab_size + 1)
    tokens = rng.choice(vocab_size, (rows, length + 1), p=weights / weights.sum())

    @jax.jit
    def loss(key, tokens):
        return small.cross_entropy(Transformer(shape, key), tokens[:, :-1], tokens[:, 1:])

    return float(loss(jax.random.key(config.seed), jnp.asarray(tokens, jnp.int32)))


@pytest.mark.parametrize("name", SHIPPED)
def test_small_configs_begin_at_the_logarithm_of_the_vocabulary(name):
    config, vocab_size = SHIPPED[name]
    found = first_loss(config, vocab_size, 8, config.length)
    assert found == pytest.approx(math.log(vocab_size), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_models_of_124_million_begin_at_the_logarithm_of_the_vocabulary(name):
    config, vocab_size = LARGE[name]
    found = first_loss(config, vocab_size, 1, 128)
    assert found == pytest.approx(math.log(vocab_size), rel=0.02)
