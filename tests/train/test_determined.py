"""Accuracy on determined words, counted by hand for models whose mistakes are known."""

import jax
import jax.numpy as jnp
import pytest

from configs.errors import UserError
from model.axes import ShardingRules
from model.compute import Compute
from model.parameter import Declare
from model.transformer import Transformer
from tests.model import small
from tests.train import tiny
from text import grammar, tokenizers
from text.reading import open_sources
from train.determined import determined_accuracy
from train.held_out import evaluate

WORDS = tokenizers.word_tokenizer(grammar.vocabulary())


class Oracle(Transformer):
    """Predicts the word that the next position reads, but never the word ``blind``."""

    def __init__(self, blind):
        self.config = small.config(vocab_size=WORDS.vocab_size, max_length=64)
        self.compute = Compute.of(self.config, ShardingRules())
        self.blind = blind
        size = self.config.padded_vocab_size
        declare = Declare(jax.random.key(0), ShardingRules(), "float32")
        self.embedding = declare.table("embedding", (size, size), ("vocab", "embed"), 1.0)
        self.embedding[...] = 9.0 * jnp.eye(size)
        self.unembedding = None

    def guess(self, tokens):
        following = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
        return jnp.where(following == self.blind, self.blind + 1, following)

    def last_residual(self, tokens, positions=None, segments=None, key=None):
        wide = jnp.arange(self.config.padded_vocab_size)[None, None]
        return (self.guess(tokens)[..., None] == wide).astype(jnp.float32)


class Parrot(Oracle):
    """Always predicts one word."""

    def guess(self, tokens):
        return jnp.full(tokens.shape, self.blind)


def config(**changes):
    fields = {
        "data.source": "grammar",
        "data.documents": 40,
        "data.validation_documents": 60,
        "data.tokenizer": "word",
        "data.rows": "packed",
        "model.vocab_size": None,
        "length": 64,
    }
    return tiny.config(fields | changes)


def accuracy(model, documents=0, **changes):
    mesh = tiny.mesh()
    with jax.set_mesh(mesh):
        return determined_accuracy(model, WORDS, config(**changes), mesh, documents)


def by_hand(is_hit, documents=60):
    """Counts the determined words of the first held-out documents."""
    hits = {}
    for text in grammar.documents(60, 0, "validation")[:documents]:
        for word in grammar.explain(text):
            kind = "held_out" if word.held_out else "seen"
            hit = is_hit(text.split()[word.position])
            for name in ("accuracy", f"accuracy/{kind}", f"accuracy/{word.rule}"):
                hits.setdefault(name, []).append(hit)
    return {name: sum(found) / len(found) for name, found in hits.items()}


def test_an_oracle_is_always_right():
    found = accuracy(Oracle(-1))
    assert set(found.values()) == {1.0}
    assert {"accuracy", "accuracy/seen", "accuracy/held_out", "accuracy/sense"} <= found.keys()


@pytest.mark.parametrize("word", ["she", "he", "was"])
def test_mistakes_are_counted_by_rule_and_by_what_training_saw(word):
    (blind,) = WORDS.encode(word)
    found = accuracy(Oracle(int(blind)))
    assert found == pytest.approx(by_hand(lambda w: w != word))


def test_a_model_that_says_one_word_is_right_as_often_as_the_word_is_due():
    (said,) = WORDS.encode("she")
    found, expected = accuracy(Parrot(int(said))), by_hand(lambda w: w == "she")
    assert found == pytest.approx(expected)
    assert 0 < found["accuracy"] < 1


@pytest.mark.parametrize("documents", [1, 17, 1000])
def test_the_first_documents_are_read(documents):
    (said,) = WORDS.encode("she")
    found = accuracy(Parrot(int(said)), documents)
    assert found == pytest.approx(by_hand(lambda w: w == "she", documents))


def test_a_document_longer_than_the_sequences_is_refused(tmp_path):
    with pytest.raises(UserError, match="length = 8 is shorter than a document"):
        open_sources(config(**{"length": 8, "data.cache_dir": str(tmp_path)}))


def test_an_evaluation_reads_microbatches_and_has_all_figures(tmp_path, monkeypatch):
    rows, guess = set(), Oracle.guess
    monkeypatch.setattr(Oracle, "guess", lambda self, t: (rows.add(len(t)), guess(self, t))[1])
    own = config(**{"data.cache_dir": str(tmp_path), "batch_size": 12, "optim.accumulate": 4})
    sources, mesh = open_sources(own), tiny.mesh()
    with jax.set_mesh(mesh):
        found = evaluate(Oracle(-1), sources.validation, sources.tokenizer, own, mesh, 0)
    assert rows == {3}
    assert {"loss", "perplexity", "bits_per_byte", "accuracy"} <= found.keys()
    assert found["accuracy"] == 1
    # Only the last position of a row is unknown to this oracle.
    assert found["loss"] < 0.5
