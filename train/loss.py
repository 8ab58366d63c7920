"""The loss of next tokens from the last residual, over chunks of tokens.

The logits of all tokens together are never in memory: those of a chunk give its losses, and in
the same pass the gradients of what they were made from. No product is computed twice.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from configs import objects
from model.axes import RESIDUAL, TOKENS, mesh_axes, spec_of
from model.gradients import with_gradient
from model.products import multiply
from model.transformer import Transformer
from train.batches import Batch

# Bytes of the logits that a device holds at once, unless a config says how many tokens.
LOGIT_BYTES = 64 * 2**20

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


def named(name: str) -> Loss:
    """Returns the loss of a config: "cross_entropy", or "module:function" for the reader's own.

    Raises:
      UserError: there is no such function.
    """
    return (
        cross_entropy if name == "cross_entropy" else objects.named(name, "loss", ["cross_entropy"])
    )


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
      chunk: tokens whose logits a device holds at once; None: as many as LOGIT_BYTES hold.
      function: of a token's logits and label, see ``per_token``; None: the cross-entropy.
    """
    compute = model.compute
    table = model.unembedding_table
    gathered = compute.gathered(table)
    settings = Settings(compute.accumulation_dtype, model.config.vocab_size, chunk, function)

    def cast(table: Array) -> Array:
        table = table.astype(compute.dtype)
        return table if gathered is None else jax.sharding.reshard(table, gathered)

    def run(gradients: bool, *arrays: Array) -> tuple:
        x, table, *rest = arrays
        return _on_shards(settings, gradients, spec_of(table), x, cast(table), *rest)

    def forward(*arrays: Array) -> tuple:
        total, nats, dx, dtable = run(True, *arrays)
        return (total, nats), (dx, dtable)

    def backward(arrays: tuple, kept: tuple, given: tuple) -> tuple:
        (x, table, *_), (dx, dtable) = arrays, kept
        scaled = (dx * given[0]).astype(x.dtype), (dtable * given[0]).astype(table.dtype)
        return *scaled, None, None, None

    loss = with_gradient(lambda *arrays: run(False, *arrays)[:2], forward, backward)
    x = compute.reshard(x.astype(compute.dtype), RESIDUAL)
    labels, weights = (compute.reshard(a, TOKENS) for a in (labels, weights))
    return loss(x, table[...], labels, weights, z_loss)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a call has besides arrays.

    Attributes:
      wide: dtype of sums.
      vocab: the true vocabulary.
      chunk: tokens of a chunk, or None.
      function: of one token, or None for the cross-entropy.
    """

    wide: str
    vocab: int
    chunk: int | None
    function: TokenLoss | None

    def losses(
        self, logits: Float[Array, "N V"], labels: Int[Array, "N"]
    ) -> tuple[Float[Array, "N"], Callable[[Array], Array]]:
        """Returns the losses by the reader's function, and what makes their gradient by logits."""
        assert self.function is not None
        each = jax.vmap(self.function)
        return jax.vjp(lambda own: each(own[:, : self.vocab], labels), logits)

    def tokens(self, count: int, rows: int) -> int:
        """Returns the tokens of a chunk, of so many in all and so many rows of the table."""
        if self.chunk is not None:
            return min(self.chunk, count)
        most = max(TILE, LOGIT_BYTES // (4 * rows) // TILE * TILE)
        parts = -(-count // most)
        return min(count, -(-count // parts // TILE) * TILE)


def _on_shards(
    settings: Settings,
    gradients: bool,
    split: PartitionSpec | None,
    x: Array,
    table: Array,
    *rest: Array,
) -> tuple:
    """Runs on each shard of tokens and vocabulary; the table's gradient is split as given."""
    if jax.sharding.get_abstract_mesh().empty:
        return _chunks(settings, gradients, _Mesh(), x, table, *rest)
    of_x, of_table = jax.typeof(x).sharding.spec, jax.typeof(table).sharding.spec
    assert split is not None
    mesh = _Mesh(*(tuple(sorted(mesh_axes(p))) for p in (of_x[:2], of_table[:1], split[1:])))
    local = functools.partial(_chunks, settings, gradients, mesh)
    specs = (PartitionSpec(), PartitionSpec(*of_x[:2]), *((of_x, split) if gradients else ()))
    return jax.shard_map(local, out_specs=specs, check_vma=False)(x, table, *rest)


@dataclasses.dataclass(frozen=True)
class _Mesh:
    """The mesh axes over which tokens, the vocabulary and the width of the table are split."""

    tokens: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()


def _chunks(
    settings: Settings,
    gradients: bool,
    mesh: _Mesh,
    x: Array,
    table: Array,
    labels: Array,
    weights: Array,
    z_loss: Array,
) -> tuple[Array, ...]:
    """Returns the sum, the nats of each token, and if asked the gradients of x and the table."""
    shape, (rows, width) = labels.shape, table.shape
    count, wide = labels.size, settings.wide
    chunk = settings.tokens(count, rows)
    parts = -(-count // chunk)

    def cut(array: Array, *last: int) -> Array:
        flat = array.reshape(count, *last)
        padded = jnp.pad(flat, [(0, parts * chunk - count)] + [(0, 0)] * len(last))
        return padded.reshape(parts, chunk, *last)

    first = rows * jax.lax.axis_index(mesh.vocab) if mesh.vocab else 0
    column = first + jnp.arange(rows)[None]

    def product(subscripts: str, x: Array, w: Array) -> Array:
        return multiply(subscripts, x, [w], wide, [None], [None])[0]

    def add(carry: tuple, part: tuple[Array, Array, Array]) -> tuple[tuple, tuple]:
        own, label, weight = part
        total, dtable = carry
        logits = product("nd,vd->nv", own, table).astype(jnp.float32)
        logits = jnp.where(column < settings.vocab, logits, jnp.finfo(jnp.float32).min)
        highest = _over(jax.lax.pmax, jax.lax.stop_gradient(logits.max(-1)), mesh.vocab)
        sums = _over(jax.lax.psum, jnp.exp(logits - highest[:, None]).sum(-1), mesh.vocab)
        log_sum = highest + jnp.log(sums)
        is_label = label[:, None] == column
        chosen = _over(jax.lax.psum, jnp.where(is_label, logits, 0).sum(-1), mesh.vocab)
        nats = log_sum - chosen
        losses = nats
        if settings.function is not None:
            whole = (
                jax.lax.all_gather(logits, mesh.vocab, axis=1, tiled=True) if mesh.vocab else logits
            )
            losses, pull = settings.losses(whole, label)
        total += (weight * (losses + z_loss * jnp.square(log_sum))).sum()
        if not gradients:
            return (total, None), (nats, None)
        chance = jnp.exp(logits - log_sum[:, None])
        change = chance * (weight * 2 * z_loss * log_sum)[:, None]
        if settings.function is None:
            change += chance * weight[:, None] - jnp.where(is_label, weight[:, None], 0)
        else:
            (of_whole,) = pull(weight.astype(losses.dtype))
            change += jax.lax.dynamic_slice_in_dim(of_whole, first, rows, 1)
        change = change.astype(own.dtype)
        back = product("nv,vd->nd", change, table)
        across = product("nv,nd->vd", change, own)
        return (total, dtable + across), (nats, _over(jax.lax.psum, back, mesh.vocab))

    start = (jnp.zeros(()), jnp.zeros((rows, width), wide) if gradients else None)
    inputs = (cut(x, width), cut(labels), cut(weights))
    (total, dtable), (nats, dx) = _each(add, start, inputs, parts)
    total = _over(jax.lax.psum, total, mesh.tokens)
    nats = nats.reshape(-1)[:count].reshape(shape)
    if not gradients:
        return total, nats
    dx = dx.reshape(-1, width)[:count].reshape(x.shape).astype(x.dtype)
    scattered = tuple(axis for axis in mesh.tokens if axis in mesh.width)
    dtable = _over(jax.lax.psum, dtable, tuple(a for a in mesh.tokens if a not in scattered))
    if scattered:
        dtable = jax.lax.psum_scatter(dtable, scattered, scatter_dimension=1, tiled=True)
    return total, nats, dx, dtable


def _each(add: Any, start: tuple, inputs: tuple, parts: int) -> tuple[tuple, tuple]:
    if parts > 1:
        return jax.lax.scan(add, start, inputs)
    carry, found = add(start, jax.tree.map(lambda array: array[0], inputs))
    return carry, found


def _over(combine: Any, x: Array, axes: tuple[str, ...]) -> Array:
    """Combines what the devices along some mesh axes have; without axes, returns it."""
    return combine(x, axes) if axes else x
