"""Every contender starts from the same network and reads the same batches."""

import itertools

import jax
import numpy as np
import pytest

from bench import start
from bench.shapes import SHAPES, Shape, config
from model.config import ModelConfig
from model.parameter import named_arrays, with_arrays
from model.transformer import Transformer
from tests.model import small

TINY = Shape(layers=2, heads=2, width=12, length=9, batch=3, vocab=17, steps=1)


def network():
    """Returns this project's network with GPT-2's parameters."""
    section = config("small", "float32").model
    section.update(dict(num_layers=2, num_heads=2, embed_dim=12, vocab_size=17, max_length=9))
    shape = ModelConfig.from_config(section, 17, 9)
    model = jax.eval_shape(lambda: Transformer(shape, jax.random.key(0)))
    arrays = start.head_parameters(TINY, start.gpt2_parameters(TINY), shape.padded_vocab_size)
    return model, arrays


def test_the_parameters_are_those_that_the_network_declares():
    model, arrays = network()
    expected = {name: like.shape for name, like in named_arrays(model).items()}
    assert {name: array.shape for name, array in arrays.items()} == expected


def test_batches_are_the_same_for_all_and_can_be_learnt():
    shape = SHAPES["small"]
    first, again = (list(itertools.islice(start.batches(shape), 20)) for _ in range(2))
    for (tokens, labels), (others, _) in zip(first, again, strict=True):
        np.testing.assert_array_equal(tokens, others)
        np.testing.assert_array_equal(tokens[:, 1:], labels[:, :-1])
    tokens, labels = (np.concatenate(parts).ravel() for parts in zip(*first, strict=True))
    usual = [np.bincount(labels[tokens == token]).max() for token in np.unique(tokens)]
    assert sum(usual) / len(tokens) == pytest.approx(0.9, abs=0.02)


@pytest.mark.extras
def test_logits_are_those_of_transformers(extra):
    extra("torch", "transformers")
    import torch

    from bench.contenders import gpt2_torch

    model, arrays = network()
    values = {name: np.asarray(arrays[name]) for name in named_arrays(model)}
    ours = with_arrays(model, jax.tree.map(jax.numpy.asarray, values))
    tokens = next(start.batches(TINY))[0]
    with torch.no_grad():
        peer = gpt2_torch.network(TINY).eval()
        expected = peer(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(small.true_logits(ours, tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.extras
def test_new_tokens_are_those_of_transformers(extra):
    extra("torch", "transformers")
    from bench.contenders import gpt2_torch, manyheads

    given = dict(shape="small", precision="float32", batch=3, prompt=9, new=20)
    ours, theirs = manyheads.Decoding(**given).run(1), gpt2_torch.Decoding(**given).run(1)
    assert ours == theirs
    assert len(np.unique(ours["drawn"])) > 1
