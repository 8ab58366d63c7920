"""Matrix products with gradients of the operands' own type, laid out for the device.

Left to itself, the gradient of ``bfloat16 x bfloat16 -> float32`` multiplies a float32 cotangent
with a bfloat16 operand, which devices do at float32 speed; and a CPU turns whole activations to
sum over two axes at once.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array


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
    left, right, result = product.terms
    summed_last = "".join(sorted(left, key=lambda index: index not in result))
    return jnp.einsum(
        f"{summed_last},{right}->{result}",
        _turned(x, left, summed_last),
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


def _spec(product: Product, x: Array) -> PartitionSpec | None:
    return None if product.spec is None else jax.typeof(x).sharding.spec


@dataclasses.dataclass(frozen=True)
class _Matrices:
    """A product as one of two matrices, whose axes are merged indices.

    Attributes:
      product: the whole.
      rows: indices of the first operand that the result has.
      summed: indices of both that it has not.
      columns: indices of the second operand that the result has.
      sizes: of each index.
      parts: mesh axes over which each index is split, in operands and result; None without a mesh.
    """

    product: Product
    rows: str
    summed: str
    columns: str
    sizes: dict[str, int]
    parts: dict[str, object] | None

    @classmethod
    def of(cls, product: Product, x: Array, w: Array) -> "_Matrices | None":
        """Returns None where an index is in all terms, or is split inside a merged axis."""
        left, right, result = product.terms
        if set(left) & set(right) & set(result):
            return None
        groups = (
            "".join(i for i in left if i in result),
            "".join(i for i in left if i not in result),
            "".join(i for i in right if i in result),
        )
        sizes = dict(zip(left + right, x.shape + w.shape, strict=True))
        if product.spec is None:
            return cls(product, *groups, sizes, None)
        specs = [jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec, product.spec]
        parts: dict[str, object] = {}
        for term, spec in zip(product.terms, specs, strict=True):
            for index, part in zip(term, spec, strict=True):
                if part is not None and parts.setdefault(index, part) != part:
                    return None
        if any(index in parts for group in groups for index in group[1:]):
            return None
        return cls(product, *groups, sizes, parts)

    def multiply(self, x: Array, w: Array) -> Array:
        left, right, result = self.product.terms
        x, x_sum = self._matrix(x, left, self.rows)
        w, w_sum = self._matrix(w, right, self.columns)
        # One is turned where sums run over the first axis of both: the smaller.
        swapped = x_sum == 0 and (w.size, result[0] in self.rows) < (x.size, True)
        if swapped:
            out = self._dot(w, w_sum, x, x_sum, self.columns)
        else:
            out = self._dot(x, x_sum, w, w_sum, self.rows)
        made = self.columns + self.rows if swapped else self.rows + self.columns
        if x_sum == 0 and made != result:
            # Else the compiler would turn the other one, to save turning the result.
            out = jax.lax.optimization_barrier(out)
        out = jnp.reshape(out, [self.sizes[i] for i in made], out_sharding=self._spec(made))
        return _ordered(out, made, result)

    def _matrix(self, x: Array, indices: str, own: str) -> tuple[Array, int]:
        """Merges an operand's own indices and the summed ones; tells where the latter are."""
        orders = (own + self.summed, self.summed + own)
        if indices not in orders:
            x, indices = _ordered(x, indices, orders[0]), orders[0]
        place = 1 if indices == orders[0] else 0
        groups = (own, self.summed) if place else (self.summed, own)
        shape = [math.prod(self.sizes[i] for i in group) for group in groups]
        return jnp.reshape(x, shape, out_sharding=self._merged(*groups)), place

    def _dot(self, x: Array, x_sum: int, w: Array, w_sum: int, first: str) -> Array:
        if x.dtype.itemsize == 2 and x_sum == 0:
            x, x_sum = _turned(x, "ab", "ba"), 1
        second = self.columns if first == self.rows else self.rows
        return jax.lax.dot_general(
            x,
            w,
            (((x_sum,), (w_sum,)), ((), ())),
            preferred_element_type=jnp.dtype(self.product.wide),
            out_sharding=self._merged(first, second),
        )

    def _spec(self, indices: str) -> PartitionSpec | None:
        if self.parts is None:
            return None
        return PartitionSpec(*(self.parts.get(index) for index in indices))

    def _merged(self, *groups: str) -> PartitionSpec | None:
        """Returns how axes of merged indices are split: as the first index of each."""
        if self.parts is None:
            return None
        return PartitionSpec(*(self.parts.get(group[0]) if group else None for group in groups))


def _ordered(x: Array, indices: str, wanted: str) -> Array:
    return x.transpose(tuple(indices.index(i) for i in wanted))


def _turned(x: Array, indices: str, wanted: str) -> Array:
    """Transposes; an array of 16 bits is written in its new order on a CPU.

    XLA's CPU kernels for 16 bits want the summed index of the left operand last in memory, and
    compute in float32 otherwise.
    """
    turned = _ordered(x, indices, wanted)
    if indices == wanted or x.dtype.itemsize != 2:
        return turned
    row_major = Layout(tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        turned, cpu=lambda t: with_layout_constraint(t, row_major), default=lambda t: t
    )
