"""What kernels for whole sequences refuse alike."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from configs.errors import UserError
from model.backends.shards import way
from model.compute import Compute
from model.gradients import with_gradient
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern


def not_whole(heads: Heads, mask: Mask, pattern: Pattern, compute: Compute) -> str | None:
    """Returns why a kernel for whole sequences cannot be used; None where it can."""
    if way(heads, mask, compute) in ("ring", "neighbours"):
        return "it needs whole sequences, and they are sharded; set mesh.context = 1"
    if not mask.in_order:
        return "it reads whole sequences, and not a cache"
    return hooks(pattern)


def hooks(pattern: Pattern) -> str | None:
    """Returns why a kernel that knows no hooks cannot be used; None where there are none."""
    if pattern.score is None and pattern.visible is None:
        return None
    return "it computes no hooks of a variant's pattern; set 'blockwise'"


def without_forward_mode(name: str, kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a kernel that has its gradient, and says what to set where ``jax.jvp`` meets it.

    Args:
      name: of the backend.
      kernel: of arrays, or pytrees of them.
    """

    def refuse(primals: tuple, tangents: tuple) -> Any:
        raise UserError(
            f"model.attention_backend = {name!r} has no forward-mode derivative, as jax.jvp and "
            "jax.hessian need it; set 'blockwise' or 'dense'."
        )

    def backward(_: tuple, pull: Callable[[Array], tuple], cotangent: Array) -> tuple:
        return pull(cotangent)

    return with_gradient(kernel, lambda *arrays: jax.vjp(kernel, *arrays), backward, refuse)
