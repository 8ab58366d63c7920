"""Losses of a reader's own: one for each token, and one of the whole batch."""

import jax
import jax.numpy as jnp

from train.loss import cross_entropy, per_token

POISON = 2  # a character of one document alone, see tests/train/accidents.py


@per_token
def smoothed(logits, label):
    """Cross-entropy with a tenth of the label's weight spread over the vocabulary."""
    chances = jax.nn.log_softmax(logits)
    return -0.9 * chances[label] - 0.1 * chances.mean()


def quiet(model, batch, weights, z_loss, key, chunk):
    """Cross-entropy, and a price on the size of the embedding."""
    total, nats = cross_entropy(model, batch, weights, z_loss, key, chunk)
    return total + jnp.square(model.embedding[...]).sum(), nats


def short(logits, label):
    """The cross-entropy, of one token, without a decorator."""
    return -jax.nn.log_softmax(logits)[label]


def long(logits, label):
    """No number."""
    return logits - label


def lonely(logits):
    """Takes too little."""
    return logits.sum()


def several(logits, label):
    """Two numbers."""
    return logits.sum(), label


def whole(logits, label):
    """A number without a slope."""
    return label


def alone(model, batch, weights, z_loss, key, chunk):
    """The sum only."""
    return cross_entropy(model, batch, weights, z_loss, key, chunk)[0]


def unsummed(model, batch, weights, z_loss, key, chunk):
    """Twice the cross-entropy of each token."""
    nats = cross_entropy(model, batch, weights, z_loss, key, chunk)[1]
    return nats, nats


def poisoned(model, batch, weights, z_loss, key, chunk):
    """No number where a batch has the token ``POISON`` to predict."""
    return _scaled(model, batch, weights, z_loss, key, chunk, jnp.nan)


def hot(model, batch, weights, z_loss, key, chunk):
    """A hundred times the cross-entropy where a batch has the token ``POISON`` to predict."""
    return _scaled(model, batch, weights, z_loss, key, chunk, 100.0)


def steep(model, batch, weights, z_loss, key, chunk):
    """A slope that is not finite, of a loss that is, where a batch has ``POISON`` to predict."""
    total, nats = cross_entropy(model, batch, weights, z_loss, key, chunk)
    return jnp.where((batch.labels == POISON).any(), jnp.inf, 1.0) * total, nats


def _scaled(model, batch, weights, z_loss, key, chunk, factor):
    total, nats = cross_entropy(model, batch, weights, z_loss, key, chunk)
    bad = batch.labels == POISON
    return total * jnp.where(bad.any(), factor, 1.0), nats * jnp.where(bad, factor, 1.0)
