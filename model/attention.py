"""The attention head, and the interface that every attention variant keeps."""

import dataclasses
import importlib
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Int

from configs.errors import UserError, nearest
from model.axes import Axes
from model.backends.choice import BACKENDS, named
from model.cache import Layer
from model.compute import Compute
from model.config import ModelConfig
from model.masks import Mask
from model.norms import Norm
from model.parameter import Declare
from model.positions import rotate

QUERIES = ("batch", "heads", "length", None)
KEYS = ("batch", "kv_heads", "length", None)
RESIDUAL = ("batch", "length", None)


@runtime_checkable
class Attention(Protocol):
    """What a block asks of an attention variant.

    A variant is one class, named in ``config.model.attention`` as "module:Class". It declares
    its parameters with ``declare`` and may keep no other state; then sharding, tally,
    optimizer groups, checkpoints and decoding follow from the declarations. Most variants
    derive from ``Multihead`` and replace ``project`` or ``write``.
    """

    def __init__(
        self, config: ModelConfig, declare: Declare, compute: Compute, window: int | None
    ) -> None:
        """Declares the parameters of one layer whose queries see ``window`` keys."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Mask,
        cache: Layer | None = None,
    ) -> tuple[Float[Array, "B T D"], Layer | None]:
        """Returns the summed updates of all heads, and the cache with these tokens in it."""

    def cache_shapes(
        self, batch: int, length: int
    ) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Returns the shapes (B, G, S, K) of keys and (B, Gv, S, R) of values to remember."""


class Multihead(nnx.Module):
    """Heads with a factored value map; grouped and multi-query when G < H.

    For head h on the normed residual x, with g the group of h::

        q = x query[h]    k = x key[g]    v = x value_down[g]
        update[h] = softmax(mask(q k^T / sqrt(K))) v value_up[h]

    and the layer's update is the sum over heads, which is the collective over the mesh
    axis ``heads``. With ``value_map="full"`` a head has one matrix value_full[h] [D, D] in
    place of value_down[g] value_up[h], applied to the mix of residuals that the head read.
    """

    def __init__(self, config: ModelConfig, declare: Declare, compute: Compute, window: int | None):
        """Declares the parameters of one layer whose queries see ``window`` keys."""
        d, h, g = config.embed_dim, config.num_heads, config.num_kv_heads
        k, r = config.head_dim, config.value_dim
        self.config = config
        self.compute = compute
        self.window = window
        self.query = declare.matrix("query", (d, h, k), ("embed", "heads", "head_dim"), "embed")
        self.key = declare.matrix("key", (d, g, k), ("embed", "kv_heads", "head_dim"), "embed")
        # Each of 2 L updates adds its share of the residual stream's variance (GPT-2, section 2.3).
        depth = (2 * config.num_layers) ** -0.5
        self.full = config.value_map == "full"
        if self.full:
            axes = ("heads", "embed", "update")
            # The product of the two factors has this scale.
            self.value_full = declare.matrix(
                "value_full", (h, d, d), axes, "heads embed", gain=depth * 0.4**0.5
            )
        else:
            axes = ("embed", "kv_heads", "value_dim")
            self.value_down = declare.matrix("value_down", (d, g, r), axes, "embed")
            axes = ("heads", "value_dim", "embed")
            self.value_up = declare.matrix(
                "value_up", (h, r, d), axes, "heads value_dim", gain=depth
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

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Mask,
        cache: Layer | None = None,
    ) -> tuple[Float[Array, "B T D"], Layer | None]:
        """Returns the summed updates of all heads, and the cache with these tokens in it.

        Args:
          x: the normed residual.
          positions: of each token in its document, for rotary positions.
          mask: which key a query sees; this layer's window is added.
          cache: keys and values of the tokens before; ``mask`` then says which of its slots a query
            sees, and which these tokens take.
        """
        compute = self.compute
        q, k, v = self.project(x, positions)
        if cache is not None:
            if mask.slot is None:
                raise ValueError("with a cache, the mask must say which slot the tokens take")
            slots = ("batch", "kv_heads", None, None)
            k, v = compute.place(k, slots), compute.place(v, slots)
            cache = cache.write(k, v, mask.slot)
            if x.shape[1] == 1:
                # What is read once is read in the type that it is held in.
                compute = dataclasses.replace(compute, dtype=cache.key.dtype.name)
            k, v = (held.astype(compute.dtype) for held in (cache.key, cache.value))
        given = (q, k, v, mask.within(self.window), self.config.logit_cap, compute)
        mixed = BACKENDS[named(self.config.attention_backend, *given)](*given)
        return self.write(x, mixed), cache

    def project(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B H T K"], Float[Array, "B G T K"], Float[Array, "B Gv T R"]]:
        """Returns queries, keys and values of each token.

        With a full value map the values are the residuals themselves, one for all heads.
        """
        matrices, biases = [self.query, self.key], [self.query_bias, self.key_bias]
        if not self.full:
            matrices.append(self.value_down)
            biases.append(self.value_bias)
        given = [bias[...] for bias in biases if bias is not None] or None
        q, k, *v = self.compute.project(x, matrices, given, (QUERIES, KEYS, KEYS)[: len(matrices)])
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.config.positions == "rotary":
            q = rotate(q, positions, self.config.rotary_base)
            k = rotate(k, positions, self.config.rotary_base)
        return q, k, v[0] if v else x[:, None].astype(q.dtype)

    def write(
        self, x: Float[Array, "B T D"], mixed: Float[Array, "B H T R"]
    ) -> Float[Array, "B T D"]:
        """Returns the sum over heads of the updates, given what each head read.

        Args:
          x: the normed residual, for variants whose update depends on it.
          mixed: ``A v`` of each head.
        """
        del x
        subscripts, matrix = (
            ("bhtd,hde->bte", self.value_full) if self.full else ("bhtr,hrd->btd", self.value_up)
        )
        bias = None if self.update_bias is None else self.update_bias[...][None, None]
        return self.compute.einsum(subscripts, mixed, matrix, axes=RESIDUAL, bias=bias)

    def cache_shapes(
        self, batch: int, length: int
    ) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Returns the shapes (B, G, S, K) of keys and (B, Gv, S, R) of values to remember."""
        c = self.config
        groups, rank = (1, c.embed_dim) if self.full else (c.num_kv_heads, c.value_dim)
        return (batch, c.num_kv_heads, length, c.head_dim), (batch, groups, length, rank)


def variant(name: str) -> Any:
    """Returns the class of an attention variant, which keeps the interface of ``Attention``.

    Args:
      name: "multihead", or "module:Class" for one of the reader's own.

    Raises:
      UserError: there is no such variant.
    """
    if name == "multihead":
        return Multihead
    module, _, cls = name.partition(":")
    if not cls:
        raise UserError(
            f"model.attention = {name!r} is no variant{nearest(name, ['multihead'])}; "
            "use 'multihead' or 'module:Class'."
        )
    try:
        found = getattr(importlib.import_module(module), cls)
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"model.attention = {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "name a module on the Python path and a class in it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nnx.Module)):
        raise UserError(f"model.attention = {name!r} is no nnx.Module; derive it from Multihead.")
    if not (callable(found) and callable(getattr(found, "cache_shapes", None))):
        raise UserError(
            f"model.attention = {name!r} has no __call__ and cache_shapes, as "
            "model.attention.Attention describes them; derive it from Multihead."
        )
    return found
