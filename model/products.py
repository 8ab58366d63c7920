"""Matrix products with gradients of the operands' own type, laid out for the device.

Left to itself, the gradient of ``bfloat16 x bfloat16 -> float32`` multiplies a float32 cotangent
with a bfloat16 operand, which devices do at float32 speed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Product:
    """One product, ``"btd,df->btf"`` say.

    Attributes:
      subscripts: as of ``jnp.einsum``; each index stands in two of the three terms.
      wide: dtype of the sums and of the result.
      spec: how the result is split over the mesh; None without one.
    """

    subscripts: str
    wide: str
    spec: PartitionSpec | None

    def __call__(self, x: Array, w: Array) -> Array:
        """Multiplies two operands of one dtype; their cotangents are rounded to it first."""
        return _multiply(self, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(product: Product, x: Array, w: Array) -> Array:
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
    terms, result = product.subscripts.split("->")
    left, right = terms.split(",")
    dy = dy.astype(x.dtype)

    def spec(like: Array) -> PartitionSpec | None:
        return None if product.spec is None else jax.typeof(like).sharding.spec

    back = Product(f"{result},{right}->{left}", product.wide, spec(x))
    # Indices of x that w has stay; the others are summed over, and come last.
    order = sorted(left, key=lambda index: index not in right)
    turned = _turned(x, tuple(left.index(index) for index in order))
    across = Product(f"{''.join(order)},{result}->{right}", product.wide, spec(w))
    return back(dy, w).astype(x.dtype), across(turned, dy).astype(w.dtype)


_multiply.defvjp(_forward, _backward)


def _turned(x: Array, order: tuple[int, ...]) -> Array:
    """Transposes; a 16-bit array is written in its new order on a CPU.

    XLA's CPU kernels for 16 bits want the summed index of the left operand last in memory, and
    compute in float32 otherwise.
    """
    turned = x.transpose(order)
    if x.dtype.itemsize != 2:
        return turned
    row_major = Layout(tuple(range(x.ndim)))
    return jax.lax.platform_dependent(
        turned, cpu=lambda t: with_layout_constraint(t, row_major), default=lambda t: t
    )
