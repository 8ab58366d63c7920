"""Losses of a reader's own: one for each token, and one of the whole batch."""

import jax
import jax.numpy as jnp

from train.loss import cross_entropy, per_token


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
