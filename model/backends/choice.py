"""The backends by name, and which one ``auto`` takes.

A new backend keeps the interface of ``dense.attend`` and joins the table.
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array

from configs.errors import UserError, nearest
from model.backends import blockwise, dense, pieces
from model.compute import Compute
from model.config import ModelConfig
from model.masks import Mask

# Queries, keys, values, mask, logit cap and arithmetic to what each head read.
Backend = Callable[[Array, Array, Array, Mask, float | None, Compute], Array]

BACKENDS: dict[str, Backend] = {
    "dense": dense.attend,
    "pieces": pieces.attend,
    "blockwise": blockwise.attend,
}
NAMES = ("auto", *BACKENDS)


def check(name: str) -> None:
    """Checks ``model.attention_backend``.

    Raises:
      UserError: there is none of that name.
    """
    if name not in NAMES:
        raise UserError(
            f"model.attention_backend = {name!r} is no backend{nearest(name, NAMES)}; "
            f"choose one of {', '.join(NAMES)}."
        )


def backend(name: str, queries: Sequence[int], keys: Sequence[int]) -> Backend:
    """Returns the backend that ``model.attention_backend`` names, or that ``auto`` takes.

    Args:
      name: of the backend.
      queries: their shape, [B, H, T, K].
      keys: their shape, [B, G, S, K].
    """
    return BACKENDS[automatic(queries, keys) if name == "auto" else name]


def automatic(queries: Sequence[int], keys: Sequence[int]) -> str:
    """Returns the name of the backend that is fastest here, by device and shape.

    Args:
      queries: their shape, [B, H, T, K], on all devices together.
      keys: their shape, [B, G, S, K].
    """
    length, seen = queries[2], keys[2]
    if length > 1 and max(length, seen) > blockwise.BLOCK:
        return "blockwise"
    if length > 1 and jax.default_backend() == "cpu":
        return "pieces"
    return "dense"


def said(config: ModelConfig, batch: int, length: int) -> str:
    """Returns a line that says which backend computes the attention of whole sequences."""
    name = config.attention_backend
    if name != "auto":
        return f"attention: {name}"
    queries = (batch, config.num_heads, length, config.head_dim)
    keys = (batch, config.num_kv_heads, length, config.head_dim)
    device = jax.default_backend()
    return f"attention: {automatic(queries, keys)} (auto, for {length} tokens on a {device})"
