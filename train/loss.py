"""Next-token cross-entropy from the last residual, over chunks of tokens.

The logits of all tokens together are never in memory: those of a chunk give its losses, and in
the same pass the gradients of what they were made from. No product is computed twice.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from model.products import Product
from model.transformer import Transformer

# Bytes of the logits that a device holds at once, unless a config says how many tokens.
LOGIT_BYTES = 64 * 2**20

RESIDUAL = ("batch", "length", None)
TOKENS = ("batch", "length")


def summed_loss(
    model: Transformer,
    x: Float[Array, "B T D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    z_loss: Float[Array, ""],
    chunk: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of losses with z-loss, and -log p(label) in nats of each token.

    The z-loss, ``z_loss * (log of the sum of exp(logits))^2``, keeps logits near zero
    (Chowdhery et al. 2022, "PaLM", section 5). Only the sum has gradients.

    Args:
      model: unembeds the residual.
      x: its last residual, normed.
      labels: the tokens to predict.
      weights: of each token in the sum.
      z_loss: weight of the z-loss.
      chunk: tokens whose logits a device holds at once; None: as many as LOGIT_BYTES hold.
    """
    compute = model.compute
    table = compute.weight(model.unembedding_table)
    x = compute.place(x.astype(compute.dtype), RESIDUAL)
    static = Static(compute.accumulation_dtype, model.config.vocab_size, chunk)
    labels, weights = compute.place(labels, TOKENS), compute.place(weights, TOKENS)
    return _loss(static, x, table, labels, weights, z_loss)


@dataclasses.dataclass(frozen=True)
class Static:
    """What a call has besides arrays: dtype of sums, true vocabulary, tokens of a chunk."""

    wide: str
    vocab: int
    chunk: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    static: Static, x: Array, table: Array, labels: Array, weights: Array, z_loss: Array
) -> tuple[Array, Array]:
    return _on_shards(static, False, x, table, labels, weights, z_loss)[:2]


def _forward(static: Static, *arrays: Array) -> tuple[tuple[Array, Array], tuple]:
    total, nats, dx, dtable = _on_shards(static, True, *arrays)
    return (total, nats), (dx, dtable)


def _backward(static: Static, kept: tuple, given: tuple) -> tuple[Array | None, ...]:
    del static
    dx, dtable = kept
    scale = given[0]
    return (dx * scale).astype(dx.dtype), (dtable * scale).astype(dtable.dtype), None, None, None


_loss.defvjp(_forward, _backward)


def _on_shards(static: Static, gradients: bool, x: Array, table: Array, *rest: Array) -> tuple:
    """Runs on each shard of tokens and vocabulary; see ``_chunks``."""
    if jax.sharding.get_abstract_mesh().empty:
        return _chunks(static, gradients, (), (), x, table, *rest)
    of_x, of_table = jax.typeof(x).sharding.spec, jax.typeof(table).sharding.spec
    over_tokens, over_vocab = _axes(of_x[0]) + _axes(of_x[1]), _axes(of_table[0])
    local = functools.partial(_chunks, static, gradients, over_tokens, over_vocab)
    tokens = PartitionSpec(*of_x[:2])
    specs = (PartitionSpec(), tokens, *((of_x, of_table) if gradients else (None, None)))
    return jax.shard_map(local, out_specs=specs, check_vma=False)(x, table, *rest)


def _axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)


def _chunks(
    static: Static,
    gradients: bool,
    over_tokens: tuple[str, ...],
    over_vocab: tuple[str, ...],
    x: Array,
    table: Array,
    labels: Array,
    weights: Array,
    z_loss: Array,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Returns the sum, the nats of each token, and if asked the gradients of x and the table."""
    shape, (rows, width) = labels.shape, table.shape
    count = labels.size
    chunk = static.chunk or max(1, LOGIT_BYTES // (4 * rows))
    parts = -(-count // chunk)
    chunk = -(-count // parts)

    def cut(array: Array, *last: int) -> Array:
        flat = array.reshape(count, *last)
        padded = jnp.pad(flat, [(0, parts * chunk - count)] + [(0, 0)] * len(last))
        return padded.reshape(parts, chunk, *last)

    first = rows * jax.lax.axis_index(over_vocab) if over_vocab else 0
    column = first + jnp.arange(rows)[None]

    def add(carry: tuple, part: tuple[Array, Array, Array]) -> tuple[tuple, tuple]:
        own, label, weight = part
        total, dtable = carry
        logits = Product("nd,vd->nv", static.wide, None)(own, table).astype(jnp.float32)
        logits = jnp.where(column < static.vocab, logits, jnp.finfo(jnp.float32).min)
        highest = _over(jax.lax.pmax, logits.max(-1), over_vocab)
        sums = _over(jax.lax.psum, jnp.exp(logits - highest[:, None]).sum(-1), over_vocab)
        log_sum = highest + jnp.log(sums)
        is_label = label[:, None] == column
        chosen = _over(jax.lax.psum, jnp.where(is_label, logits, 0).sum(-1), over_vocab)
        nats = log_sum - chosen
        total += (weight * (nats + z_loss * jnp.square(log_sum))).sum()
        if not gradients:
            return (total, None), (nats, None)
        chance = jnp.exp(logits - log_sum[:, None])
        pull = (weight * (1 + 2 * z_loss * log_sum))[:, None]
        given = (chance * pull - jnp.where(is_label, weight[:, None], 0)).astype(own.dtype)
        back = Product("nv,vd->nd", static.wide, None)(given, table)
        across = Product("nv,nd->vd", static.wide, None)(given, own)
        return (total, dtable + across), (nats, _over(jax.lax.psum, back, over_vocab))

    start = (jnp.zeros(()), jnp.zeros((rows, width), static.wide) if gradients else None)
    inputs = (cut(x, width), cut(labels), cut(weights))
    (total, dtable), (nats, dx) = _each(add, start, inputs, parts)
    total = _over(jax.lax.psum, total, over_tokens)
    nats = nats.reshape(-1)[:count].reshape(shape)
    if not gradients:
        return total, nats, None, None
    dx = dx.reshape(-1, width)[:count].reshape(x.shape).astype(x.dtype)
    return total, nats, dx, _over(jax.lax.psum, dtable, over_tokens).astype(table.dtype)


def _each(add: Any, start: tuple, inputs: tuple, parts: int) -> tuple[tuple, tuple]:
    if parts > 1:
        return jax.lax.scan(add, start, inputs)
    carry, found = add(start, jax.tree.map(lambda array: array[0], inputs))
    return carry, found


def _over(combine: Any, x: Array, axes: tuple[str, ...]) -> Array:
    """Combines what the devices along some mesh axes have; without axes, returns it."""
    return combine(x, axes) if axes else x
