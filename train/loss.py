"""Next-token cross-entropy, summed so that microbatches add up."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "B T V"], labels: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Returns, for each token, -log p(label) in nats and log of the sum of exp(logits).

    The label's logit is taken by comparison: a vocabulary that is split over devices then
    sums its share where it lies.
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])[None, None]
    chosen = jnp.where(is_label, logits, 0).sum(-1)
    return total - chosen, total


def summed_loss(
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    counted: Bool[Array, "B T"],
    z_loss: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the loss with z-loss, and the cross-entropy alone, both summed over counted tokens.

    The z-loss, ``z_loss * (log of the sum of exp(logits))^2``, keeps logits near zero
    (Chowdhery et al. 2022, "PaLM", section 5).
    """
    nats, total = cross_entropy(logits, labels)
    nats = jnp.where(counted, nats, 0).sum()
    z = jnp.where(counted, jnp.square(total), 0).sum()
    return nats + z_loss * z, nats
