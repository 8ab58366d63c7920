"""The attention head, and the three parts that an attention variant may replace one by one."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from configs import objects
from model.axes import KEYS, QUERIES, RESIDUAL, Axes
from model.backends import choice
from model.compute import Compute
from model.config import ModelConfig
from model.heads import Heads
from model.masks import Mask
from model.norms import Norm
from model.parameter import Declare
from model.pattern import Pattern
from model.positions import rotate


class Multihead(nnx.Module):
    """Heads with a factored value map; grouped and multi-query when G < H.

    For head h on the normed residual x, with g the group of h::

        q = x query[h]    k = x key[g]    v = x value_down[g]          (project)
        mixed[h] = softmax(mask(q k^T / sqrt(K))) v                    (attend)
        update = sum over h of mixed[h] value_up[h]                    (write)

    where the sum is the collective over the mesh axis ``heads``. With ``value_map="full"`` a head
    has one matrix value_full[h] [D, D] in place of value_down[g] value_up[h], applied to the mix
    of residuals that the head read.
    """

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute):
        """Declares the parameters of one layer."""
        d, h, g = config.embed_dim, config.num_heads, config.num_kv_heads
        k, r = config.head_dim, config.value_dim
        self.config = config
        self.compute = compute
        self.full = config.value_map == "full"

        def reads(name: str, shape: tuple[int, ...], heads: str, width: str) -> nnx.Param:
            return declare.matrix(name, shape, ("embed", heads, width), "embed", stacked=heads)

        self.query = reads("query", (d, h, k), "heads", "head_dim")
        self.key = reads("key", (d, g, k), "kv_heads", "head_dim")
        # Each of 2 L updates adds its share of the residual stream's variance (GPT-2, section 2.3).
        depth = (2 * config.num_layers) ** -0.5
        if self.full:
            axes: Axes = ("heads", "embed", "update")
            # The product of the two factors has this scale.
            self.value_full = declare.matrix(
                "value_full", (h, d, d), axes, "heads embed", "heads", gain=depth * 0.4**0.5
            )
        else:
            self.value_down = reads("value_down", (d, g, r), "kv_heads", "value_dim")
            axes = ("heads", "value_dim", "embed")
            self.value_up = declare.matrix(
                "value_up", (h, r, d), axes, "heads value_dim", "heads", gain=depth
            )

        def bias(name: str, shape: tuple[int, ...], axes: Axes, wanted: bool) -> nnx.Param | None:
            return declare.bias(name, shape, axes) if wanted else None

        biases = config.biases
        self.query_bias = bias("query_bias", (h, k), ("heads", "head_dim"), biases)
        self.key_bias = bias("key_bias", (g, k), ("kv_heads", "head_dim"), biases)
        by_rank = biases and not self.full
        self.value_bias = bias("value_bias", (g, r), ("kv_heads", "value_dim"), by_rank)
        self.update_bias = bias("update_bias", (d,), (None,), biases)

        def norm(name: str) -> Norm | None:
            if not config.query_key_norm:
                return None
            plain = dataclasses.replace(config, norm="rmsnorm")
            return Norm(plain, declare.inside(name), compute, k)

        self.query_norm, self.key_norm = norm("query_norm"), norm("key_norm")

    def project(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Heads:
        """Returns queries, keys and values of each token.

        With a full value map the values are the residuals themselves, one for all heads.

        Args:
          x: the normed residual.
          positions: of each token in its document, for rotary positions.
        """
        matrices = [self.query, self.key] + ([] if self.full else [self.value_down])
        biases = [self.query_bias, self.key_bias, self.value_bias]
        q, k, *v = self.compute.einsums(
            "btd,dhk->bhtk",
            x,
            matrices,
            axes=(QUERIES, KEYS, KEYS)[: len(matrices)],
            biases=[None if b is None else b[...][None, :, None] for b in biases[: len(matrices)]],
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.config.positions == "rotary":
            q = rotate(q, positions, self.config.rotary_base)
            k = rotate(k, positions, self.config.rotary_base)
        return Heads(q, k, v[0] if v else x[:, None].astype(q.dtype))

    def attend(self, heads: Heads, mask: Mask) -> Float[Array, "B H T R"]:
        """Returns what each head reads, by the backend of the config.

        Args:
          heads: queries, keys and values.
          mask: which key a query sees.
        """
        backend, pattern = self.config.attention_backend, self.pattern(heads, mask)
        objects.check_type(pattern, Pattern, "model.attention: pattern")
        return choice.attend(backend, heads, mask, pattern, self.compute)

    def pattern(self, heads: Heads, mask: Mask) -> Pattern:
        """Returns how logits become a pattern; a variant adds hooks and sinks here."""
        del heads, mask
        return Pattern(cap=self.config.logit_cap)

    def write(
        self, x: Float[Array, "B T D"], mixed: Float[Array, "B H T R"]
    ) -> Float[Array, "B T D"]:
        """Returns the sum over heads of the updates, given what each head read.

        Args:
          x: the normed residual, for variants whose update depends on it.
          mixed: ``A v`` of each head.
        """
        subscripts, matrix = (
            ("bhtd,hde->bte", self.value_full) if self.full else ("bhtr,hrd->btd", self.value_up)
        )
        shape = (x.shape[0], matrix.shape[0], x.shape[1], matrix.shape[1])
        what = f"model.attention = {self.config.attention!r}: attend returns"
        objects.check_result(mixed, shape, what, f"return what each head reads, {shape}")
        bias = None if self.update_bias is None else self.update_bias[...][None, None]
        return self.compute.einsum(subscripts, mixed, matrix, axes=RESIDUAL, bias=bias)


def variant(name: str) -> Any:
    """Returns the class of an attention variant: ``Multihead``, or the one that is named.

    It has ``project``, ``attend`` and ``write``, between the first two of which the cache stands.
    It declares its parameters with ``declare`` and keeps no other state; then sharding, tally,
    optimizer, checkpoints and decoding follow. Most derive from ``Multihead`` and replace one part.

    Raises:
      UserError: there is no such variant.
    """
    if name == "multihead":
        return Multihead
    parts = dict(project=2, attend=2, write=2)
    kinds = {"nnx.Module": nnx.Module}
    return objects.load(name, "model.attention", ["multihead"], 3, kinds, parts)
