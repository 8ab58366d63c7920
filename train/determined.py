"""Accuracy on the words that the lecture grammar determines, told apart by what training saw."""

from collections import defaultdict
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from model.transformer import Transformer
from text import grammar
from text.rows import Rows
from text.tokenizers import Tokenizer
from train import heartbeat
from train.batches import make_batch


def determined_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    config: ConfigDict,
    mesh: Mesh,
    documents: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Returns the share of determined words that the model finds likeliest.

    Args:
      model: trained on the grammar.
      tokenizer: its words.
      config: whole; ``data`` says which documents are held out, none longer than ``length``.
      mesh: that the model is on.
      documents: how many held-out documents to read; all of them when 0.
      stop: asked before each batch, whether to leave it at that.

    Returns:
      "accuracy", "accuracy/seen" and "accuracy/held_out" (combinations that training shows, and
      that it never shows), and "accuracy/<rule>" for each rule of the grammar; nothing where it
      was to stop.
    """
    data = config.data
    texts = grammar.documents(data.validation_documents, data.grammar_seed, "validation")
    texts = texts[:documents] if documents else texts
    ids = [tokenizer.encode(text) for text in texts]
    labels = np.zeros((len(ids), config.length), np.int32)
    for row, tokens in zip(labels, ids, strict=True):
        row[: len(tokens)] = tokens
    rows = config.batch_size // config.optim.accumulate  # a microbatch: no more may fit
    predicted = _predictions(model, labels, tokenizer.end_id or 0, mesh, rows, stop)
    if len(predicted) < len(labels):
        return {}
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, text in enumerate(texts):
        for word in grammar.explain(text):
            hit = bool(predicted[row, word.position] == labels[row, word.position])
            for name in ("", "/held_out" if word.held_out else "/seen", f"/{word.rule}"):
                hits["accuracy" + name].append(hit)
    return {name: float(np.mean(values)) for name, values in sorted(hits.items())}


def _predictions(
    model: Transformer,
    labels: Int[np.ndarray, "N T"],
    end: int,
    mesh: Mesh,
    batch_size: int,
    stop: Callable[[], bool],
) -> Int[np.ndarray, "n T"]:
    """Returns the likeliest token at each place of documents that begin after an end token.

    There are fewer rows where it was to stop.
    """
    read = np.concatenate([np.full_like(labels[:, :1], end), labels[:, :-1]], axis=1)

    def rows(numbers: Int[np.ndarray, "B"]) -> Rows:
        inside = np.minimum(numbers, len(read) - 1)
        return Rows(read[inside], labels[inside], np.ones_like(labels[inside], bool))

    predicted = [labels[:0]]
    for start in range(0, len(read), batch_size):
        heartbeat.busy(heartbeat.EVALUATING)
        if stop():
            break
        batch = make_batch(rows, start + np.arange(batch_size), mesh, model.compute.rules)
        predicted.append(np.asarray(_likeliest(model, batch.tokens)))
    return np.concatenate(predicted)[: len(read)]


@jax.jit
def _likeliest(model: Transformer, tokens: Array) -> Array:
    logits = model.compute.reshard(model(tokens), ("batch", "length", None))
    return model.compute.reshard(logits.argmax(-1), (None, None))
