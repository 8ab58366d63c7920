"""Matrix products with gradients of the operands' own type, laid out for the device.

Left to itself, the gradient of ``bfloat16 x bfloat16 -> float32`` multiplies a float32 cotangent
with a bfloat16 operand, which devices do at float32 speed; and a CPU turns whole activations to
sum over two axes at once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array

from model.stacks import after

# Slabs of a matrix that are added before the rest of its rows, where one row multiplies it.
SLABS = 8

# Sums of this many terms at most are not cut in windows by XLA, which would write the terms.
TERMS = 32


@dataclasses.dataclass(frozen=True)
class Product:
    """One product, ``"btd,df->btf"`` say.

    Attributes:
      subscripts: as of ``jnp.einsum``; each index stands in two of the three terms, or in all.
      wide: dtype of the sums and of the result.
      spec: how the result is split over the mesh; None without one.
    """

    subscripts: str
    wide: str
    spec: PartitionSpec | None

    def __call__(self, x: Array, w: Array) -> Array:
        """Multiplies two operands of one dtype; their cotangents are rounded to it first."""
        return _multiply(self, x, w)

    def by_made(self, x: Array, make: Callable[[Any], Array], parts: Any) -> Array:
        """Multiplies by ``make(parts)``, which is made again for the backward pass.

        So a cast, gathered or cut matrix is not held from one to the other.
        """
        return _multiply_by_made(self, make, x, parts)

    @property
    def terms(self) -> tuple[str, str, str]:
        """Indices of the two operands and of the result."""
        operands, result = self.subscripts.split("->")
        left, right = operands.split(",")
        return left, right, result


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(product: Product, x: Array, w: Array) -> Array:
    as_matrices = _Matrices.of(product, x, w)
    if as_matrices is not None:
        return as_matrices.multiply(x, w)
    return jnp.einsum(
        product.subscripts,
        x,
        w,
        preferred_element_type=product.wide,
        out_sharding=product.spec,
    )


def _forward(product: Product, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(product, x, w), (x, w)


def _backward(product: Product, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = kept
    left, right, result = product.terms
    dy = dy.astype(x.dtype)
    to_x = Product(f"{result},{right}->{left}", product.wide, _spec(product, x))
    to_w = Product(f"{left},{result}->{right}", product.wide, _spec(product, w))
    return to_x(dy, w).astype(x.dtype), to_w(x, dy).astype(w.dtype)


_multiply.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _multiply_by_made(
    product: Product, make: Callable[[Any], Array], x: Array, parts: Any
) -> Array:
    return _multiply(product, x, make(after(parts, x)))


def _made_forward(
    product: Product, make: Callable[[Any], Array], x: Array, parts: Any
) -> tuple[Array, tuple[Array, Any]]:
    return _multiply_by_made(product, make, x, parts), (x, parts)


def _made_backward(
    product: Product, make: Callable[[Any], Array], kept: tuple[Array, Any], dy: Array
) -> tuple[Array, Any]:
    x, parts = kept
    w, pull = jax.vjp(lambda parts: make(after(parts, dy)), parts)
    dx, dw = _backward(product, (x, w), dy)
    return dx, *pull(dw)


_multiply_by_made.defvjp(_made_forward, _made_backward)


def _spec(product: Product, x: Array) -> PartitionSpec | None:
    return None if product.spec is None else jax.typeof(x).sharding.spec


@dataclasses.dataclass(frozen=True)
class _Matrices:
    """A product as one of two matrices, whose axes are merged indices, or of a batch of them.

    Attributes:
      product: the whole.
      batch: indices that are in all terms.
      rows: indices of the first operand and the result.
      summed: indices of both operands.
      columns: indices of the second operand and the result.
      sizes: of each index.
      parts: mesh axes over which each index is split; None without a mesh.
    """

    product: Product
    batch: str
    rows: str
    summed: str
    columns: str
    sizes: dict[str, int]
    parts: dict[str, object] | None

    @classmethod
    def of(cls, product: Product, x: Array, w: Array) -> "_Matrices | None":
        """Returns None where an index is split inside a merged axis, or not alike everywhere."""
        left, right, result = product.terms
        batch = "".join(i for i in left if i in right and i in result)
        groups = (
            "".join(i for i in left if i in result and i not in batch),
            "".join(i for i in left if i not in result),
            "".join(i for i in right if i in result and i not in batch),
        )
        sizes = dict(zip(left + right, x.shape + w.shape, strict=True))
        if product.spec is None:
            return cls(product, batch, *groups, sizes, None)
        specs = [jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec, product.spec]
        parts: dict[str, object] = {}
        for term, spec in zip(product.terms, specs, strict=True):
            for index, part in zip(term, spec, strict=True):
                if parts.setdefault(index, part) != part:
                    return None
        if any(parts[index] is not None for group in groups for index in group[1:]):
            return None
        return cls(product, batch, *groups, sizes, parts)

    def multiply(self, x: Array, w: Array) -> Array:
        left, right, result = self.product.terms
        x, x_sums_first = self._matrix(x, left, self.rows)
        w, w_sums_first = self._matrix(w, right, self.columns)
        # Where sums run over the first axis of both, one is turned, and perhaps the result.
        swapped = False
        if x_sums_first and w_sums_first:
            size = math.prod(self.sizes[i] for i in result)
            ahead, behind = (
                operand.size + (0 if self.batch + made == result else size)
                for operand, made in (
                    (x, self.rows + self.columns),
                    (w, self.columns + self.rows),
                )
            )
            swapped = behind < ahead
        if swapped:
            made = self.batch + self.columns + self.rows
            out = self._dot(w, w_sums_first, self.columns, x, x_sums_first, self.rows)
        else:
            made = self.batch + self.rows + self.columns
            out = self._dot(x, x_sums_first, self.rows, w, w_sums_first, self.columns)
        if x_sums_first and made != result:
            out = _held(out)
        shape = [self.sizes[i] for i in made]
        return _ordered(jnp.reshape(out, shape, out_sharding=self._split(*made)), made, result)

    def _matrix(self, x: Array, indices: str, own: str) -> tuple[Array, bool]:
        """Merges an operand's own indices and the summed ones; tells whether the latter lead."""
        sums_last, sums_first = self.batch + own + self.summed, self.batch + self.summed + own
        if indices not in (sums_last, sums_first):
            x, indices = _ordered(x, indices, sums_last), sums_last
        groups = (own, self.summed) if indices == sums_last else (self.summed, own)
        merged = [math.prod(self.sizes[i] for i in group) for group in groups]
        shape = [*(self.sizes[i] for i in self.batch), *merged]
        x = jnp.reshape(x, shape, out_sharding=self._split(*self.batch, *groups))
        return x, indices != sums_last

    def _one_row(self, x: Array, w: Array, w_sums_first: bool) -> Array:
        """Multiplies one row by a matrix of 16 bits, element by element, then sums in two steps.

        XLA's CPU kernels read such a matrix ten times slower than memory gives it.
        """
        wide, size = self.product.wide, x.shape[-1]
        ahead = x.shape[:-2]
        # Tied to what changes, a matrix is not widened for all tokens ahead of the loop over them.
        x, w = (a.astype(wide) for a in jax.lax.optimization_barrier((x, w)))
        if w_sums_first:
            count = math.gcd(size, SLABS)
            w = w.reshape(*ahead, count, size // count, w.shape[-1])
            sums = (w * x.reshape(*ahead, count, size // count, 1)).sum(-3)
            return jax.lax.optimization_barrier(sums).sum(-2, keepdims=True)
        count = size // _lanes(size)
        w = w.reshape(*ahead, w.shape[-2], count, size // count)
        sums = (w * x.reshape(*ahead, 1, count, size // count)).sum(-2)
        return jax.lax.optimization_barrier(sums).sum(-1)[..., None, :]

    def _dot(
        self, x: Array, x_sums_first: bool, rows: str, w: Array, w_sums_first: bool, columns: str
    ) -> Array:
        axes = len(self.batch)
        if x.dtype.itemsize == 2 and x_sums_first:
            x, x_sums_first = _turned(x), False
        batch = tuple(range(axes))
        summed = ((axes + (not x_sums_first),), (axes + (not w_sums_first),))

        def dot(x: Array, w: Array) -> Array:
            return jax.lax.dot_general(
                x,
                w,
                (summed, (batch, batch)),
                preferred_element_type=jnp.dtype(self.product.wide),
                out_sharding=self._split(*self.batch, rows, columns),
            )

        whole = self.parts is None or not any(self.parts.values())
        if x.shape[axes] == 1 and not x_sums_first and x.dtype.itemsize == 2 and whole:
            one_row = functools.partial(self._one_row, w_sums_first=w_sums_first)
            return jax.lax.platform_dependent(x, w, cpu=one_row, default=dot)
        return dot(x, w)

    def _split(self, *groups: str) -> PartitionSpec | None:
        """Returns how axes of merged indices are split: as the first index of each."""
        if self.parts is None:
            return None
        return PartitionSpec(*(self.parts[group[0]] if group else None for group in groups))


def _lanes(size: int) -> int:
    """Returns how many sums run side by side: whole vector registers, where the size has them."""
    wide = [n for n in range(16, size + 1, 16) if size % n == 0 and size // n <= TERMS]
    return wide[0] if wide else size // max(n for n in range(1, TERMS + 1) if size % n == 0)


def _ordered(x: Array, indices: str, wanted: str) -> Array:
    return x.transpose(tuple(indices.index(i) for i in wanted))


def _held(result: Array) -> Array:
    """Keeps a CPU's compiler from turning an operand in order to save turning the result."""
    return jax.lax.platform_dependent(
        result, cpu=jax.lax.optimization_barrier, default=lambda unchanged: unchanged
    )


def _turned(x: Array) -> Array:
    """Transposes matrices of 16 bits; on a CPU they are written in their new order.

    XLA's CPU kernels for 16 bits want the summed index of the left operand last in memory, and
    compute in float32 otherwise.
    """
    row_major = Layout(tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        x.swapaxes(-1, -2), cpu=lambda t: with_layout_constraint(t, row_major), default=lambda t: t
    )
