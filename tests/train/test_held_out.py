"""Loss, perplexity and bits per byte against NumPy on a text built by hand."""

import math

import jax
import numpy as np
import pytest

from model.axes import ShardingRules
from tests.model import reference, small
from tests.train import tiny
from text import tokenizers
from text.corpora import Corpus
from text.repeats import RepeatRows
from text.rows import CorpusRows
from train.batches import evaluation_batches
from train.held_out import text_loss

WORDS = tokenizers.word_tokenizer(["a", "bb", "ccc", "dé", "e", "f", "g", "h", "i", "j"])
DOCUMENTS = ["a bb ccc", "dé e", "j i h g f e", "a a"]
SHAPE = small.config(num_layers=1, mlp="none")


def corpus():
    ids = [[*WORDS.encode(text), WORDS.end_id] for text in DOCUMENTS]
    starts = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    return Corpus(np.concatenate(ids).astype(np.uint16), starts)


def measured(source, batch_size, tokenizer, batches=0, sizes=None, accumulate=1):
    mesh = tiny.mesh(**(sizes or {}))
    with jax.set_mesh(mesh):
        model = jax.tree.map(
            lambda value, like: jax.device_put(value, like.sharding.spec),
            small.drawn(SHAPE),
            small.abstract(SHAPE),
        )
    found = evaluation_batches(source, batch_size, batches, mesh, ShardingRules(), accumulate)
    return text_loss(model, found, tokenizer, mesh)


def nats_of(source, rows):
    """Returns the nats of every counted token of some rows, by the NumPy network."""
    weights = reference.weights(small.drawn(SHAPE))
    inside = source.evaluation(np.arange(rows))
    logits = reference.logits(SHAPE, weights, inside.tokens, inside.positions, inside.segments)
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    chosen = np.take_along_axis(logits, inside.labels[..., None], -1)[..., 0]
    return (total - chosen)[inside.counted]


@pytest.mark.parametrize(
    ("kind", "batch_size", "sizes"),
    [("packed", 2, {}), ("packed", 3, {}), ("stream", 2, {}), ("packed", 4, dict(fsdp=2, heads=4))],
    ids=str,
)
def test_figures_against_numpy(kind, batch_size, sizes):
    source = CorpusRows(corpus(), kind, 7, 0, WORDS.end_id)
    figures = measured(source, batch_size, WORDS, sizes=sizes)
    nats = nats_of(source, source.evaluation_rows)
    assert len(nats) == len(corpus().tokens) - (kind == "stream")
    assert figures["loss"] == pytest.approx(nats.mean(), abs=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    # A word stands for its bytes and a separator, "<end>" for none; a stream's first token
    # is not predicted.
    bytes_read = sum(len(word.encode()) + 1 for text in DOCUMENTS for word in text.split())
    bytes_read -= 2 if kind == "stream" else 0
    bits = nats.sum() / math.log(2) / bytes_read
    assert figures["bits_per_byte"] == pytest.approx(bits, abs=1e-5)


def test_an_evaluation_of_some_batches_reads_the_first():
    source = CorpusRows(corpus(), "packed", 7, 0, WORDS.end_id)
    figures = measured(source, 2, WORDS, batches=1)
    assert figures["loss"] == pytest.approx(nats_of(source, 2).mean(), abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_random_tokens_have_no_bytes(accumulate):
    source = RepeatRows(11, 7, (2, 4), 0)
    figures = measured(source, 2, None, 1, accumulate=accumulate)
    assert figures.keys() == {"loss", "perplexity"}
    assert figures["loss"] == pytest.approx(nats_of(source, 2).mean(), abs=1e-5)
