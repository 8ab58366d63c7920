"""Where a saved step comes from and what it holds, as its manifest and config say."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from configs import base, resolved
from model.saved import Saved
from train.opening import ITEMS

Arrays = Mapping[str, Mapping[str, Any]]  # shape and dtype by name


def provenance(saved: Saved) -> dict[str, Any]:
    """Returns by dotted name what is known of how a step was made."""
    about = dict(format=saved.manifest.format, step=saved.step, corpus=saved.corpus)
    words = None if saved.tokenizer is None else saved.tokenizer.vocab_size
    return about | dict(tokens=words) | flat(saved.manifest.made)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dictionaries by dotted name, as "packages.jax"."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def arrays(saved: Saved) -> dict[str, Arrays]:
    """Returns shape and dtype of each array of each item that is there.

    Raises:
      UserError: an item of format 1 cannot be read.
    """
    there = [item for item in ITEMS if saved.holds(item)]
    return {item: saved.arrays(item) for item in there}


def totals(held: Arrays) -> dict[str, Any]:
    """Returns how many arrays, elements and bytes an item has, and of what dtypes."""
    counts = {name: math.prod(about["shape"]) for name, about in held.items()}
    sizes = {name: jnp.dtype(about["dtype"]).itemsize for name, about in held.items()}
    return dict(
        arrays=len(held),
        elements=sum(counts.values()),
        bytes=sum(counts[name] * sizes[name] for name in held),
        dtypes=sorted({about["dtype"] for about in held.values()}),
    )


def settings(saved: Saved) -> dict[str, tuple[Any, Any]]:
    """Returns (default, value) of each field of its config that is not base.py's default."""
    return resolved.difference(base.get_config(), saved.config)
