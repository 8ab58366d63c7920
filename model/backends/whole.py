"""What kernels for whole sequences refuse alike."""

from model.backends.shards import length_is_split
from model.compute import Compute
from model.masks import Mask
from model.pattern import Pattern


def not_whole(mask: Mask, pattern: Pattern, compute: Compute) -> str | None:
    """Returns why a kernel for whole sequences cannot be used; None where it can."""
    if length_is_split(compute):
        return "it needs whole sequences on each device; set mesh.context = 1"
    if not mask.in_order:
        return "it reads whole sequences, and not a cache"
    if pattern.hooked:
        return "it computes no hooks of a variant's pattern; set 'blockwise'"
    return None
