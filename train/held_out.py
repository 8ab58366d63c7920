"""A model measured on held-out text: loss, perplexity, bits per byte; accuracy on the grammar."""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from model.transformer import Transformer
from text.reading import RowSource
from text.tokenizers import Tokenizer
from train import heartbeat
from train.batches import Batch, evaluation_batches
from train.determined import determined_accuracy
from train.loss import summed_loss


def evaluate(
    model: Transformer,
    source: RowSource,
    tokenizer: Tokenizer | None,
    config: ConfigDict,
    mesh: Mesh,
    batches: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Measures a model on held-out rows.

    Args:
      model: without dropout here.
      source: the held-out rows.
      tokenizer: None for random tokens.
      config: whole.
      mesh: that the model is on.
      batches: how many to read; all when 0.
      stop: asked before each batch, whether to leave it at that.

    Returns:
      "loss" (nats a token), "perplexity", "bits_per_byte" (of the text that the tokens stand
      for; not for random tokens), and for the grammar the accuracies of ``determined_accuracy``;
      nothing where it was to stop.
    """
    rules, accumulate = model.compute.rules, config.optim.accumulate
    read = evaluation_batches(source, config.batch_size, batches, mesh, rules, accumulate)
    figures = text_loss(model, read, tokenizer, mesh, config.loss_chunk, stop)
    if figures and config.data.source == "grammar" and tokenizer is not None:
        documents = batches * config.batch_size
        accuracy = determined_accuracy(model, tokenizer, config, mesh, documents, stop)
        return figures | accuracy if accuracy else {}
    return figures


def text_loss(
    model: Transformer,
    batches: Iterable[Batch],
    tokenizer: Tokenizer | None,
    mesh: Mesh,
    chunk: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Returns "loss", "perplexity", and "bits_per_byte" where tokens stand for text.

    Arguments as of ``evaluate``, with batches of held-out rows, and the tokens whose logits a
    device holds at once (None: see ``train.loss``).
    """
    sizes = np.zeros(model.config.padded_vocab_size, np.float32)
    if tokenizer is not None:
        known = tokenizer.token_bytes()
        sizes[: len(known)] = known
    table = jax.device_put(sizes, NamedSharding(mesh, PartitionSpec()))
    nats = tokens = size = 0.0
    for batch in batches:
        heartbeat.busy(heartbeat.EVALUATING)
        if stop():
            return {}
        with jax.set_mesh(mesh):
            sums = jax.device_get(_sums(model, batch, table, chunk))
        nats, tokens, size = nats + sums[0], tokens + sums[1], size + sums[2]
    loss = float(nats / max(tokens, 1))
    figures = dict(loss=loss, perplexity=math.exp(min(loss, 700)))
    if size:
        figures["bits_per_byte"] = float(nats / math.log(2) / size)
    return figures


@functools.partial(jax.jit, static_argnums=3)
def _sums(
    model: Transformer, batch: Batch, sizes: Array, chunk: int | None
) -> tuple[Array, Array, Array]:
    """Returns nats, tokens and bytes, summed over a batch's counted tokens."""
    x = model.last_residual(batch.tokens, batch.positions, batch.segments)
    weights = batch.counted.astype(jnp.float32)
    nats, _ = summed_loss(model, x, batch.labels, weights, jnp.zeros(()), chunk)
    spec = model.compute.rules.spec(("batch", "length"), batch.labels.shape)
    width = sizes.at[batch.labels].get(out_sharding=spec)
    return nats, weights.sum(), jnp.where(batch.counted, width, 0).sum()
