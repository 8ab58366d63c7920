"""The backends by name, and which one ``auto`` takes.

A new backend keeps the interface of ``dense.attend`` and joins the table; one that cannot
compute everything also says what it refuses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from configs.errors import UserError, nearest
from model import masks
from model.axes import platform
from model.backends import blockwise, cudnn, dense, pieces, splash
from model.compute import Compute, Shaped
from model.config import ModelConfig
from model.masks import Mask

# Queries, keys, values, mask, logit cap and arithmetic to what each head read.
Backend = Callable[[Array, Array, Array, Mask, float | None, Compute], Array]

BACKENDS: dict[str, Backend] = {
    "dense": dense.attend,
    "pieces": pieces.attend,
    "blockwise": blockwise.attend,
    "splash": splash.attend,
    "cudnn": cudnn.attend,
}
NAMES = ("auto", *BACKENDS)

# Why a backend cannot take the same arguments, or None; the others take everything.
REFUSALS: dict[str, Callable[..., str | None]] = {
    "splash": splash.refusal,
    "cudnn": cudnn.refusal,
}


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


def named(
    name: str,
    q: Shaped,
    k: Shaped,
    v: Shaped,
    mask: Mask,
    logit_cap: float | None,
    compute: Compute,
) -> str:
    """Returns the name of the backend that computes these arguments of ``dense.attend``.

    Args:
      name: ``model.attention_backend``. It counts for whole sequences; tokens that read a cache
        take what ``auto`` does where it cannot.
      q: queries, or their shape and dtype; so too the keys and values.
      k: keys.
      v: values.
      mask: which key a query sees.
      logit_cap: of the logits.
      compute: the arithmetic.

    Raises:
      UserError: the backend refuses them.
    """
    given = (q, k, v, mask, logit_cap, compute)
    reason = REFUSALS[name](*given) if name in REFUSALS else None
    if name == "auto" or (reason and mask.slot is not None):
        return _automatic(*given)
    if reason:
        raise UserError(
            f"model.attention_backend = {name!r} cannot be used: {reason} ('auto' takes another)."
        )
    return name


def _automatic(
    q: Shaped, k: Shaped, v: Shaped, mask: Mask, logit_cap: float | None, compute: Compute
) -> str:
    """Returns what is fastest by device and shape: a device's own kernel for long sequences."""
    length, longest = q.shape[2], max(q.shape[2], k.shape[2])
    if length == 1:
        return "dense"
    if longest >= splash.BLOCK:
        for name, refusal in REFUSALS.items():
            if refusal(q, k, v, mask, logit_cap, compute) is None:
                return name
    if longest > blockwise.BLOCK:
        return "blockwise"
    return "pieces" if platform() == "cpu" else "dense"


def said(
    config: ModelConfig, compute: Compute, batch: int, length: int, documents: bool = False
) -> str:
    """Returns a line that says which backend computes the attention of whole sequences.

    Args:
      config: of the model.
      compute: its arithmetic.
      batch: rows.
      length: tokens of a row.
      documents: whether a row has several.

    Raises:
      UserError: the backend that the config names refuses them.
    """
    name = config.attention_backend

    def shape(heads: int, width: int) -> Shaped:
        return jax.ShapeDtypeStruct((batch, heads, length, width), compute.dtype)

    full = config.value_map == "full"
    values = shape(1, config.embed_dim) if full else shape(config.num_kv_heads, config.value_dim)

    def mask() -> Mask:
        segments = jnp.zeros((batch, length), jnp.int32) if documents else None
        return masks.causal(length, segments, compute)

    found = named(
        name,
        shape(config.num_heads, config.head_dim),
        shape(config.num_kv_heads, config.head_dim),
        values,
        jax.eval_shape(mask),
        config.logit_cap,
        compute,
    )
    if name != "auto":
        return f"attention: {name}"
    return f"attention: {found} (auto, for {length} tokens on a {platform()})"
