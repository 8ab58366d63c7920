"""The backends by name, and which one ``auto`` takes.

A new backend keeps the interface of ``dense.attend`` and joins the table, and its name those in
``configs.ranges``; one that cannot compute everything also says what it refuses.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from jaxtyping import Array, Float

from configs.errors import UserError
from model.backends import blocks, blockwise, cudnn, dense, pieces, splash
from model.backends.shards import way
from model.compute import Compute
from model.devices.choice import device
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern

# Queries, keys and values, with mask, pattern and arithmetic, to what each head read.
Backend = Callable[[Heads, Mask, Pattern, Compute], Array]

BACKENDS: dict[str, Backend] = {
    "dense": dense.attend,
    "pieces": pieces.attend,
    "blockwise": blockwise.attend,
    "splash": splash.attend,
    "cudnn": cudnn.attend,
}

# Those that attend to the keys of a turn where keys go round a ring.
ROUND = ("blockwise", "splash")

# Why a backend cannot take the same arguments, or None; the others take everything.
REFUSALS: dict[str, Callable[..., str | None]] = {"splash": splash.refusal, "cudnn": cudnn.refusal}


def select(name: str, heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> str:
    """Returns the name of the backend that computes these arguments of ``dense.attend``.

    Args:
      name: ``model.attention_backend``. It counts for whole sequences; tokens that read a cache
        take what ``auto`` does where it cannot.
      heads: queries, keys and values, or their shapes and dtypes.
      mask: which key a query sees.
      pattern: how logits become a pattern.
      compute: the arithmetic.

    Raises:
      UserError: the backend refuses them.
    """
    arguments = (heads, mask, pattern, compute)
    reason = REFUSALS[name](*arguments) if name in REFUSALS else None
    if name != "auto" and not reason:
        return name
    if reason and mask.slot is None:
        raise UserError(
            f"model.attention_backend = {name!r} cannot be used: {reason} ('auto' takes another)."
        )
    # The fastest by device and shape: a device's own kernel for long sequences.
    queries, keys = heads.query.shape[2], heads.key.shape[2]
    longest = max(queries, keys)
    if queries == 1:
        return "dense"
    goes_round = way(heads, mask, compute) == "ring"
    if longest >= splash.BLOCK:
        for kernel, refusal in REFUSALS.items():
            if refusal(*arguments) is None:
                return kernel
    return "blockwise" if goes_round or longest > blocks.BLOCK else device().short_attention


def attend(
    name: str, heads: Heads, mask: Mask, pattern: Pattern, compute: Compute
) -> Float[Array, "B H T R"]:
    """Returns what each head reads; arguments as of ``select``.

    Raises:
      UserError: the backend refuses them.
    """
    q, k, v = heads.query, heads.key, heads.value
    if q.shape[2] == 1:
        # What is read once is read in the type that it is held in.
        compute = dataclasses.replace(compute, dtype=k.dtype.name)
    (rows, count, queries, _), dtype = q.shape, compute.dtype
    pattern = pattern.checked(rows, count, queries, k.shape[2])
    heads = Heads(q.astype(dtype), k.astype(dtype), v.astype(dtype))
    arguments = (heads, mask, pattern, compute)
    taken = select(name, *arguments)
    for names in _records:
        names.append(taken + _meeting(taken, heads, mask, compute))
    return BACKENDS[taken](*arguments)


def _meeting(taken: str, heads: Heads, mask: Mask, compute: Compute) -> str:
    """Says how attention meets a sequence that is sharded; nothing where none is."""
    by_way = {
        "whole": "",
        "all_to_all": ", sequences exchanged for heads",
        "neighbours": ", a window's keys from neighbours",
    }
    ring = " in a ring" if taken in ROUND else ", all keys gathered"
    return by_way.get(way(heads, mask, compute), ring)


_records: list[list[str]] = []


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Yields a list to which each backend that is called adds its name, while it lasts."""
    names: list[str] = []
    _records.append(names)
    try:
        yield names
    finally:
        _records.remove(names)
