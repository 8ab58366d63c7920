"""Products for XLA's CPU compiler: an einsum as one product of two matrices.

Indices are merged first, so that no activation is turned to sum over batch and length; where the
16-bit kernels want one of two operands turned, it is the smaller. One row of 16 bits times a
matrix is written out as elements and sums.
"""

import itertools
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array

# Slabs of a matrix that are added before the rest of its rows, where one row multiplies it.
SLABS = 8

# Sums of this many terms at most are not cut in windows by XLA, which would write the terms.
TERMS = 32

# Stands for the indices that are merged where matrices are joined.
JOINED = "J"


def einsum(subscripts: str, x: Array, w: Array, wide: str) -> Array:
    """Returns the einsum of two operands of one type, with sums in ``wide``; without a mesh.

    Args:
      subscripts: each index stands in two of the three terms, or in all.
      x: the first operand.
      w: the second.
      wide: type of the sums and of the result.
    """
    left, right, out = re.split(",|->", subscripts)
    sizes = dict(zip(left + right, x.shape + w.shape, strict=True))
    batch = "".join(i for i in left if i in right and i in out)
    rows = "".join(i for i in left if i in out and i not in batch)
    columns = "".join(i for i in right if i in out and i not in batch)
    summed = "".join(i for i in left if i not in out)

    def matrix(array: Array, indices: str, free: str) -> tuple[Array, bool]:
        """Merges an operand's free indices and the summed ones; tells whether the latter lead."""
        last, first = batch + free + summed, batch + summed + free
        if indices not in (last, first):
            array, indices = _ordered(array, indices, last), last
        groups = (free, summed) if indices == last else (summed, free)
        merged = [math.prod(sizes[i] for i in group) for group in groups]
        return array.reshape(*(sizes[i] for i in batch), *merged), indices != last

    (x, x_first), (w, w_first) = matrix(x, left, rows), matrix(w, right, columns)
    made = batch + rows + columns
    if x_first and w_first:
        # Where sums run over the first axis of both, one is turned, and perhaps the result.
        size = math.prod(sizes[i] for i in out)
        other = batch + columns + rows
        ahead, behind = (
            a.size + (0 if order == out else size) for a, order in ((x, made), (w, other))
        )
        if behind < ahead:
            x, w, made = w, x, other
    result = _dot(x, x_first, w, w_first, wide)
    if x_first and made != out:
        # Else the compiler turns an operand in order to save turning the result.
        result = jax.lax.optimization_barrier(result)
    return _ordered(result.reshape([sizes[i] for i in made]), made, out)


def products(subscripts: str, x: Array, ws: Sequence[Array], wide: str) -> list[Array]:
    """Returns the einsum of an operand with each of several, which are joined to one matrix."""
    left, right, out = re.split(",|->", subscripts)
    free = "".join(i for i in right if i not in left)
    rows, summed = ("".join(i for i in left if (i in out) == kept) for kept in (True, False))
    joined = _joined(ws, right, summed, free)
    result = einsum(f"{left},{summed}{JOINED}->{rows}{JOINED}", x, joined, wide)
    ends = itertools.accumulate(math.prod(_sizes(w, right, free)) for w in ws)
    parts = jnp.split(result, list(ends)[:-1], axis=-1)
    return [
        _ordered(part.reshape(*part.shape[:-1], *_sizes(w, right, free)), rows + free, out)
        for part, w in zip(parts, ws, strict=True)
    ]


def sum_of_products(subscripts: str, pairs: Sequence[tuple[Array, Array]], wide: str) -> Array:
    """Returns the sum of the einsums of pairs of operands, as one over all that they sum over."""
    left, right, out = re.split(",|->", subscripts)
    summed = "".join(i for i in left if i not in out)
    rows, columns = ("".join(i for i in term if i in out) for term in (left, right))
    xs, ws = zip(*pairs, strict=True)
    x, w = _joined(xs, left, rows, summed), _joined(ws, right, columns, summed)
    return einsum(f"{rows}{JOINED},{columns}{JOINED}->{out}", x, w, wide)


def _joined(arrays: Sequence[Array], indices: str, kept: str, merged: str) -> Array:
    """Merges some indices of arrays to one last axis, along which the arrays are joined."""
    ordered = [_ordered(array, indices, kept + merged) for array in arrays]
    flat = [array.reshape(*array.shape[: len(kept)], -1) for array in ordered]
    return jnp.concatenate(flat, axis=-1)


def _sizes(array: Array, indices: str, wanted: str) -> list[int]:
    return [array.shape[indices.index(i)] for i in wanted]


def _dot(x: Array, x_first: bool, w: Array, w_first: bool, wide: str) -> Array:
    """Multiplies matrices, or batches of them; ``first`` tells which axis is summed."""
    axes = x.ndim - 2
    if x.dtype.itemsize == 2:
        if x_first:
            x, x_first = _turned(x), False
        elif x.shape[-2] == 1:
            return _one_row(x, w, w_first, wide)
    batch = tuple(range(axes))
    summed = ((axes + (not x_first),), (axes + (not w_first),))
    dtype = jnp.dtype(wide)
    return jax.lax.dot_general(x, w, (summed, (batch, batch)), preferred_element_type=dtype)


def _turned(x: Array) -> Array:
    """Transposes matrices of 16 bits, and writes them in their new order.

    XLA's CPU kernels for 16 bits want the summed index of the left operand last in memory, and
    compute in float32 otherwise.
    """
    return with_layout_constraint(x.swapaxes(-1, -2), Layout(tuple(range(x.ndim))))


def _one_row(x: Array, w: Array, w_first: bool, wide: str) -> Array:
    """Multiplies one row by a matrix of 16 bits, element by element, then sums in two steps.

    XLA's CPU kernels read such a matrix ten times slower than memory gives it.
    """
    size, ahead = x.shape[-1], x.shape[:-2]
    # Tied to what changes, a matrix is not widened for all tokens ahead of the loop over them.
    x, w = (a.astype(wide) for a in jax.lax.optimization_barrier((x, w)))
    if w_first:
        count = math.gcd(size, SLABS)
        w = w.reshape(*ahead, count, size // count, w.shape[-1])
        sums = (w * x.reshape(*ahead, count, size // count, 1)).sum(-3)
        return jax.lax.optimization_barrier(sums).sum(-2, keepdims=True)
    count = size // _lanes(size)
    w = w.reshape(*ahead, w.shape[-2], count, size // count)
    sums = (w * x.reshape(*ahead, 1, count, size // count)).sum(-2)
    return jax.lax.optimization_barrier(sums).sum(-1)[..., None, :]


def _lanes(size: int) -> int:
    """Returns how many sums run side by side: whole vector registers, where the size has them."""
    wide = [n for n in range(16, size + 1, 16) if size % n == 0 and size // n <= TERMS]
    return wide[0] if wide else size // max(n for n in range(1, TERMS + 1) if size % n == 0)


def _ordered(x: Array, indices: str, wanted: str) -> Array:
    return x.transpose(tuple(indices.index(i) for i in wanted))
