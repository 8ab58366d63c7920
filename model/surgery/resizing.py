"""One axis of a parameter made longer or shorter, by what the axis means."""

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int


def rows(
    saved: Float[Array, "v *rest"],
    fresh: Float[Array, "w *rest"],
    numbers: Int[np.ndarray, "w"],
) -> Float[Array, "w *rest"]:
    """Returns rows of a saved table by their numbers; a fresh row where the number is -1."""
    there = (numbers >= 0).reshape(-1, *(1,) * (saved.ndim - 1))
    return jnp.where(there, saved[np.maximum(numbers, 0)], fresh)


def first_rows(
    saved: Float[Array, "s *rest"], fresh: Float[Array, "t *rest"]
) -> Float[Array, "t *rest"]:
    """Returns the first rows of a saved table, as many as there are; then fresh ones."""
    return jnp.concatenate([saved[: len(fresh)], fresh[len(saved) :]])


def shares(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """Returns in which measure each new key/value head is made of each old one.

    A new one is the mean, over the query heads that read it, of the old ones that they read. So
    fewer are the means of groups (Ainslie et al. 2023, "GQA", section 2.1), and more are
    repetitions.
    """
    new, old = np.arange(after)[:, None], np.arange(before)[None]
    ends = np.minimum((new + 1) * before, (old + 1) * after)
    common = np.maximum(ends - np.maximum(new * before, old * after), 0)
    return common / before


def is_repeated(before: int, after: int) -> bool:
    """Tells whether each new key/value head is one of the old ones."""
    return bool((shares(before, after).max(1) == 1).all())


def regrouped(
    saved: Float[Array, "g *rest"], groups: int
) -> tuple[Float[Array, "h *rest"], Float[Array, ""], Float[Array, ""]]:
    """Returns as many key/value heads as asked for, along the first axis.

    Returns:
      The heads; the sum of squares of what each query head's differ from those it had, in the
      measure of one query head a common part of both; and the same sum of those it had.
    """
    before = saved.shape[0]
    measure = shares(before, groups)
    if is_repeated(before, groups):  # to the bit
        squares = jnp.square(saved).sum()
        return saved[measure.argmax(1)], 0 * squares, squares
    made = jnp.tensordot(jnp.asarray(measure, saved.dtype), saved, 1, precision="highest")
    heads = np.arange(np.lcm(before, groups))
    had, has = (x[heads * len(x) // len(heads)] for x in (saved, made))
    return made, jnp.square(had - has).sum(), jnp.square(had).sum()
