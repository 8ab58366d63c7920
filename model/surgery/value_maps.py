"""A head's value map in other factors: multiplied out, of more rank, or of less by SVD.

Key/value group g has ``value_down[g]`` [D, R], and each of its query heads ``value_up[h]``
[R, D]. Side by side these are one matrix [R, n D] for the n heads of a group, so that the best
approximation of all of a group's maps by factors that share ``value_down`` is one truncated SVD
(Eckart and Young 1936). A bias of values is one more row of ``value_down``, which reads a 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Squares = Float[Array, ""]  # a sum of squares


def full_map(down: Float[Array, "d G R"], up: Float[Array, "H R e"]) -> Float[Array, "H d e"]:
    """Returns the map of each head: the product of its factors."""
    grouped = up.reshape(down.shape[1], -1, *up.shape[1:])
    maps = jnp.einsum("dgr,gnre->gnde", down, grouped, precision="highest")
    return maps.reshape(up.shape[0], *maps.shape[2:])


def written_bias(bias: Float[Array, "G R"], up: Float[Array, "H R e"]) -> Float[Array, " e"]:
    """Returns what heads write of the bias of their values, where each pattern's sum is 1."""
    grouped = up.reshape(bias.shape[0], -1, *up.shape[1:])
    return jnp.einsum("gr,gnre->e", bias, grouped, precision="highest")


def factors(
    maps: Float[Array, "H D E"], fresh: Float[Array, "D G R"]
) -> tuple[Float[Array, "D G R"], Float[Array, "H R E"], Squares, Squares]:
    """Returns the best factors of full maps, of as many groups and of the rank that ``fresh`` has.

    Returns:
      value_down and value_up; the squares of the singular values left out, and of all.
    """
    heads, rows, columns = maps.shape
    groups = fresh.shape[1]
    joint = maps.reshape(groups, heads // groups, rows, columns)
    joint = joint.swapaxes(1, 2).reshape(groups, rows, -1)
    left, values, right = jnp.linalg.svd(joint, full_matrices=False)
    return _cut(left, values, right, fresh, columns)


def narrowed(
    down: Float[Array, "D G Q"], up: Float[Array, "H Q E"], fresh: Float[Array, "D G R"]
) -> tuple[Float[Array, "D G R"], Float[Array, "H R E"], Squares, Squares]:
    """Returns the best factors of less rank, as ``factors`` would, without the maps themselves."""
    groups, (_, rank, columns) = down.shape[1], up.shape
    joint = up.reshape(groups, -1, rank, columns).swapaxes(1, 2).reshape(groups, rank, -1)
    left, first = jnp.linalg.qr(down.swapaxes(0, 1))
    right, second = jnp.linalg.qr(joint.mT)
    product = jnp.matmul(first, second.mT, precision="highest")
    inner_left, values, inner_right = jnp.linalg.svd(product, full_matrices=False)
    left = jnp.matmul(left, inner_left, precision="highest")
    right = jnp.matmul(inner_right, right.mT, precision="highest")
    return _cut(left, values, right, fresh, columns)


def widened(
    down: Float[Array, "D G Q"], up: Float[Array, "H Q E"], fresh: Float[Array, "D G R"]
) -> tuple[Float[Array, "D G R"], Float[Array, "H R E"]]:
    """Returns factors of more rank with the same product.

    What is new reads as the fresh ``value_down`` does, and writes nothing until it has learned to.
    """
    rank, wider = up.shape[1], fresh.shape[2]
    silent = jnp.zeros((up.shape[0], wider - rank, up.shape[2]), up.dtype)
    return jnp.concatenate([down, fresh[..., rank:]], 2), jnp.concatenate([up, silent], 1)


def _cut(
    left: Float[Array, "G D Q"],
    values: Float[Array, "G Q"],
    right: Float[Array, "G Q nE"],
    fresh: Float[Array, "D G R"],
    columns: int,
) -> tuple[Array, Array, Squares, Squares]:
    """Returns the factors of the largest singular values, of which each has the root."""
    rank = min(fresh.shape[2], values.shape[1])
    root = jnp.sqrt(values[:, :rank])
    # A direction that no map uses keeps its vector, so that it can be learned: with two zeros
    # neither factor would have a gradient.
    used = root > 1e-3 * root[:, :1]
    down = left[..., :rank] * jnp.where(used, root, 1)[:, None]
    up = right[:, :rank] * jnp.where(used, root, 0)[..., None]
    up = up.reshape(*up.shape[:2], -1, columns).swapaxes(1, 2).reshape(-1, rank, columns)
    down, up = widened(down.swapaxes(0, 1), up, fresh)
    return down, up, jnp.square(values[:, rank:]).sum(), jnp.square(values).sum()
