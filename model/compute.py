"""How arrays are computed: dtypes of operands and sums, and where results live."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from model.axes import Axes, ShardingRules, platform
from model.config import ModelConfig
from model.products import Product

# An array, or what is known of one that is not there.
Shaped = Array | jax.ShapeDtypeStruct

# The name by which a remat policy finds the results of matrix products.
PRODUCT = "product"


@dataclasses.dataclass(frozen=True)
class Compute:
    """The arithmetic that all modules share.

    Attributes:
      dtype: of activations and of operands of matrix products.
      accumulation_dtype: of sums, softmax and norms.
      rules: maps logical axes to mesh axes.
      joins: several matrices that read the same are one product where that can be.
    """

    dtype: str
    accumulation_dtype: str
    rules: ShardingRules
    joins: bool = False

    @classmethod
    def of(cls, config: ModelConfig, rules: ShardingRules) -> "Compute":
        """Returns the arithmetic that a config asks for."""
        joins = config.join_projections
        if joins is None:
            joins = platform() == "cpu"
        return cls(config.dtype, config.accumulation_dtype, rules, joins)

    def place(self, x: Array, axes: Axes) -> Array:
        """Moves an array to where its logical axes say; without a mesh, returns it."""
        spec = self.rules.spec(axes, x.shape)
        return x if spec is None else jax.sharding.reshard(x, spec)

    def weight(self, parameter: nnx.Param, dtype: str | None = None) -> Array:
        """Returns a parameter as an operand: cast, then gathered over the axis ``embed``.

        It is cast first, so that the gather moves the smaller type.
        """
        value = parameter[...].astype(dtype or self.dtype)
        axes = tuple(None if axis == "embed" else axis for axis in parameter.axes)
        return self.place(value, axes)

    def einsum(
        self,
        subscripts: str,
        x: Array,
        w: nnx.Param | Array,
        *,
        axes: Axes,
        dtype: str | None = None,
        bias: Array | None = None,
    ) -> Array:
        """Multiplies in ``dtype`` and sums in ``accumulation_dtype``, forward and backward.

        Args:
          subscripts: as of ``jnp.einsum``.
          x: an activation.
          w: a parameter, which is cast and gathered, or another activation.
          axes: logical axes of the result; a contracted axis that is split becomes a sum
            over its mesh axis here.
          dtype: of the result; that of activations when None.
          bias: added to the sums before they are rounded; of a shape that stretches to theirs.
        """
        if isinstance(w, nnx.Param):
            return self._by_parameters(subscripts, x, self.weight, w, axes, dtype, bias)
        w = w.astype(self.dtype)
        product = self._product(subscripts, x, w, axes)
        return self._finished(product(x.astype(self.dtype), w), dtype, bias)

    def _by_parameters(
        self,
        subscripts: str,
        x: Array,
        make: Callable[[Any], Array],
        parameters: Any,
        axes: Axes,
        dtype: str | None,
        bias: Array | None,
    ) -> Array:
        """Multiplies by what ``make`` makes of parameters, which is not held until backward."""
        product = self._product(subscripts, x, jax.eval_shape(make, parameters), axes)
        result = product.by_made(x.astype(self.dtype), make, parameters)
        return self._finished(result, dtype, bias)

    def _product(self, subscripts: str, x: Shaped, w: Shaped, axes: Axes) -> Product:
        out = jax.eval_shape(lambda a, b: jnp.einsum(subscripts, a, b), _bare(x), _bare(w))
        return Product(subscripts, self.accumulation_dtype, self.rules.spec(axes, out.shape))

    def _finished(self, result: Array, dtype: str | None, bias: Array | None) -> Array:
        if bias is not None:
            result = result + bias.astype(result.dtype)
        return checkpoint_name(result.astype(dtype or self.dtype), PRODUCT)

    def project(
        self,
        x: Float[Array, "B T D"],
        matrices: Sequence[nnx.Param],
        biases: Sequence[Array] | None,
        axes: Sequence[Axes],
    ) -> list[Float[Array, "B h T w"]]:
        """Multiplies the residual by several matrices [D, h, w] of heads.

        Where ``joins`` they become one product: a CPU is faster at it, from as many tokens on as
        make good for copying the matrices side by side. Heads that are split are not joined.

        Args:
          x: the normed residual.
          matrices: of heads; each may have other sizes.
          biases: [h, w] of each matrix, or None.
          axes: logical axes of each result.
        """
        widths = [matrix.shape[1] * matrix.shape[2] for matrix in matrices]
        split = self.rules.spec(("heads",)) or (None,)
        if not self.joins or split[0] is not None or x.shape[0] * x.shape[1] < x.shape[2]:
            each = [None] * len(matrices) if biases is None else [b[None, :, None] for b in biases]
            return [
                self.einsum("btd,dhk->bhtk", x, w, axes=a, bias=b)
                for w, b, a in zip(matrices, each, axes, strict=True)
            ]

        def side_by_side(matrices: Sequence[nnx.Param]) -> Array:
            flat = [self.weight(matrix).reshape(x.shape[2], -1) for matrix in matrices]
            return jnp.concatenate(flat, 1)

        bias = None
        if biases is not None:
            bias = jnp.concatenate([b.reshape(-1) for b in biases])[None, None]
        joined = self._by_parameters(
            "btd,de->bte", x, side_by_side, list(matrices), ("batch", "length", None), None, bias
        )
        found = []
        ends = itertools.accumulate(widths[:-1])
        for part, w, a in zip(jnp.split(joined, list(ends), 2), matrices, axes, strict=True):
            heads = part.reshape(*part.shape[:2], *w.shape[1:]).swapaxes(1, 2)
            found.append(self.place(heads, a))
        return found

    def dropout(
        self, x: Float[Array, "*shape"], rate: float, key: Array | None, axes: Axes
    ) -> Float[Array, "*shape"]:
        """Zeroes elements with probability ``rate``, scales the rest; without a key, returns x."""
        if key is None or rate == 0:
            return x
        spec = self.rules.spec(axes, x.shape)
        chance = jax.random.uniform(key, x.shape, out_sharding=spec)
        return jnp.where(chance < rate, 0, x / (1 - rate)).astype(x.dtype)


def _bare(x: Shaped) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
