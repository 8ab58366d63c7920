"""The loss of next tokens from the last residual, over chunks of tokens.

The logits of all tokens together are never in memory: those of a chunk give its losses, and in
the same pass the gradients of what they were made from. No product is computed twice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from configs import objects
from configs.errors import UserError
from model.axes import TOKENS, WHOLE_RESIDUAL, mesh_axes, spec_of
from model.devices.choice import device
from model.gradients import with_gradient
from model.transformer import Transformer
from train.batches import Batch

# Chunks are a multiple of so many tokens: whole tiles of a matrix product.
TILE = 128

# A model, a batch, the weight of each token in the sum, the weight of the z-loss, a key of dropout
# and the tokens of a chunk, to the sum that is minimised and the cross-entropy of each token.
Loss = Callable[
    [Transformer, Batch, Float[Array, "B T"], Float[Array, ""], PRNGKeyArray | None, int | None],
    tuple[Float[Array, ""], Float[Array, "B T"]],
]

# The logits [V] and the label of one token to its loss.
TokenLoss = Callable[[Float[Array, "V"], Int[Array, ""]], Float[Array, ""]]


def per_token(function: TokenLoss | None) -> Loss:
    """Returns the loss that is the weighted sum of what a function gives for each token.

    Args:
      function: of one token's logits [V], in float32, and its label; None: the cross-entropy.
    """

    def loss(
        model: Transformer,
        batch: Batch,
        weights: Float[Array, "B T"],
        z_loss: Float[Array, ""],
        key: PRNGKeyArray | None = None,
        chunk: int | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
        x = model.last_residual(batch.tokens, batch.positions, batch.segments, key)
        return summed_loss(model, x, batch.labels, weights, z_loss, chunk, function)

    return loss


cross_entropy = per_token(None)


def by_name(name: str) -> Loss:
    """Returns the loss of a config: "cross_entropy", or "module:function" for the reader's own.

    That is a ``Loss``, or a ``TokenLoss`` of a logits vector and a label.

    Raises:
      UserError: there is no such function, or it takes other arguments.
    """
    if name == "cross_entropy":
        return cross_entropy
    function = objects.load(name, "loss", ["cross_entropy"])
    if not objects.refusal(function, 2):
        return per_token(function)
    if objects.refusal(function, 6):
        raise UserError(
            f"loss = {name!r} takes other arguments; write it of (logits, label) of one token, "
            "or of (model, batch, weights, z_loss, key, chunk)."
        )

    def loss(model: Transformer, batch: Batch, weights: Array, *rest: Any) -> Any:
        result = function(model, batch, weights, *rest)
        remedy = f"return the sum to minimise, and the cross-entropy of each token {weights.shape}"
        objects.check_result(result, [(), weights.shape], f"loss = {name!r} returns", remedy)
        return result

    return loss


def summed_loss(
    model: Transformer,
    x: Float[Array, "B T D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    z_loss: Float[Array, ""],
    chunk: int | None = None,
    function: TokenLoss | None = None,
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
      chunk: tokens whose logits a device holds at once; None: see ``Plain.logit_bytes``.
      function: of a token's logits and label, see ``per_token``; None: the cross-entropy.
    """
    compute, table = model.compute, model.unembedding_table[...]
    gathered, of_table = compute.gathered(model.unembedding_table), spec_of(table)
    x = compute.reshard(x.astype(compute.dtype), WHOLE_RESIDUAL)
    labels, weights = (compute.reshard(a, TOKENS) for a in (labels, weights))
    of_x, wide, vocab = spec_of(x), compute.accumulation_dtype, model.config.vocab_size
    over_tokens, over_vocab, over_width = (
        () if spec is None else tuple(sorted(mesh_axes(spec[part])))
        for spec, part in ((of_x, slice(2)), (of_table, slice(1)), (of_table, slice(1, 2)))
    )

    reduced = compute.reduce_dtype or compute.dtype
    product = functools.partial(device().einsum, wide=wide, spec=None)

    def local(gradients: bool, x: Array, table: Array, *rest: Array) -> tuple[Array, ...]:
        """Returns the sum, the nats of each token, and if asked the gradients of x and table."""
        labels, weights, z_loss = rest
        count, (rows, width) = labels.size, table.shape
        size = min(count, chunk or _chunk(count, rows))
        parts = -(-count // size)
        first = rows * jax.lax.axis_index(over_vocab) if over_vocab else 0
        column = first + jnp.arange(rows)[None]

        def cut(array: Array, *last: int) -> Array:
            padding = [(0, parts * size - count)] + [(0, 0)] * len(last)
            return jnp.pad(array.reshape(count, *last), padding).reshape(parts, size, *last)

        def add(carry: tuple, part: tuple[Array, ...]) -> tuple[tuple, tuple]:
            x, label, weight = part
            total, dtable = carry
            logits = product("nd,vd->nv", x, table).astype(jnp.float32)
            logits = jnp.where(column < vocab, logits, jnp.finfo(jnp.float32).min)
            highest = _over(jax.lax.pmax, jax.lax.stop_gradient(logits.max(-1)), over_vocab)
            sums = _over(jax.lax.psum, jnp.exp(logits - highest[:, None]).sum(-1), over_vocab)
            log_sum = highest + jnp.log(sums)
            is_label = label[:, None] == column
            chosen = _over(jax.lax.psum, jnp.where(is_label, logits, 0).sum(-1), over_vocab)
            nats = losses = log_sum - chosen
            if function is not None:
                whole = logits
                if over_vocab:
                    whole = jax.lax.all_gather(logits, over_vocab, axis=1, tiled=True)
                one = jax.eval_shape(function, whole[0, :vocab], label[0])
                objects.check_result(one, (), "loss gives for one token", "return one number")
                each = jax.vmap(function)
                losses, pull = jax.vjp(lambda whole: each(whole[:, :vocab], label), whole)
            total += (weight * (losses + z_loss * jnp.square(log_sum))).sum()
            if not gradients:
                return (total, None), (nats,)
            chance = jnp.exp(logits - log_sum[:, None])
            change = chance * (weight * 2 * z_loss * log_sum)[:, None]
            if function is None:
                change += chance * weight[:, None] - jnp.where(is_label, weight[:, None], 0)
            else:
                (of_whole,) = pull(weight.astype(losses.dtype))
                change += jax.lax.dynamic_slice_in_dim(of_whole, first, rows, 1)
            change = change.astype(x.dtype)
            dx = product("nv,vd->nd", change, table).astype(reduced)
            dx = _over(jax.lax.psum, dx, over_vocab)
            return (total, dtable + product("nv,nd->vd", change, x)), (nats, dx)

        dtable: Any = jnp.zeros((rows, width), wide) if gradients else None
        carry = jnp.zeros(()), dtable
        inputs = cut(x, width), cut(labels), cut(weights)
        if parts > 1:
            (total, dtable), by_token = jax.lax.scan(add, carry, inputs)
        else:
            (total, dtable), by_token = add(carry, tuple(array[0] for array in inputs))
        nats, *dx = (a.reshape(parts * size, -1)[:count] for a in by_token)
        sums = _over(jax.lax.psum, total, over_tokens), nats.reshape(labels.shape)
        if not gradients:
            return sums
        scattered = tuple(axis for axis in over_tokens if axis in over_width)
        rest_of = tuple(axis for axis in over_tokens if axis not in scattered)
        dtable = _over(jax.lax.psum, dtable, rest_of)
        if scattered:
            dtable = jax.lax.psum_scatter(dtable, scattered, scatter_dimension=1, tiled=True)
        return *sums, dx[0].reshape(x.shape).astype(x.dtype), dtable

    def run(gradients: bool, x: Array, table: Array, *rest: Array) -> tuple[Array, ...]:
        table = table.astype(compute.dtype)
        if of_x is None:
            return local(gradients, x, table, *rest)
        specs = PartitionSpec(), PartitionSpec(*of_x[:2]), *((of_x, of_table) if gradients else ())
        shards = jax.shard_map(
            functools.partial(local, gradients), out_specs=specs, check_vma=False
        )
        return shards(x, jax.sharding.reshard(table, gathered), *rest)

    def forward(*arrays: Array) -> tuple:
        total, nats, dx, dtable = run(True, *arrays)
        return (total, nats), (dx, dtable)

    def backward(arrays: tuple, kept: tuple, cotangents: tuple) -> tuple:
        scaled = (slope * cotangents[0] for slope in kept)
        dx, dtable = (a.astype(like.dtype) for a, like in zip(scaled, arrays[:2], strict=True))
        return dx, dtable, None, None, None

    loss = with_gradient(functools.partial(run, False), forward, backward)
    return loss(x, table, labels, weights, z_loss)


def _chunk(count: int, rows: int) -> int:
    """Returns the tokens of a chunk, of so many in all and so many rows of the table."""
    most = max(TILE, device().logit_bytes // (4 * rows) // TILE * TILE)
    return -(-count // -(-count // most) // TILE) * TILE


def _over(combine: Callable, x: Array, axes: tuple[str, ...]) -> Array:
    """Combines what the devices along some mesh axes have; without axes, returns it."""
    return combine(x, axes) if axes else x
