"""The backends by name. A new one keeps the interface of ``dense.attend`` and joins the table."""

from collections.abc import Callable

from jaxtyping import Array

from configs.errors import UserError, nearest
from model.backends import blockwise, dense
from model.compute import Compute
from model.masks import Mask

# Queries, keys, values, mask, logit cap and arithmetic to what each head read.
Backend = Callable[[Array, Array, Array, Mask, float | None, Compute], Array]

BACKENDS: dict[str, Backend] = {"dense": dense.attend, "blockwise": blockwise.attend}


def backend(name: str) -> Backend:
    """Returns the backend that ``model.attention_backend`` names.

    Raises:
      UserError: there is none of that name.
    """
    if name not in BACKENDS:
        raise UserError(
            f"model.attention_backend = {name!r} is no backend{nearest(name, BACKENDS)}; "
            f"choose one of {', '.join(BACKENDS)}."
        )
    return BACKENDS[name]
