"""How arrays are computed: types of operands and sums, and how results are sharded."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from configs.errors import UserError
from model.axes import RESIDUAL, WHOLE_RESIDUAL, Axes, ShardingRules
from model.config import ModelConfig
from model.products import lookup, multiply

# The name by which a remat policy finds the results of matrix products.
PRODUCT = "product"


@dataclasses.dataclass(frozen=True)
class Compute:
    """The arithmetic that all modules share."""

    dtype: str  # of activations and of operands of matrix products
    accumulation_dtype: str  # of sums, softmax and norms
    rules: ShardingRules  # maps logical axes to mesh axes
    reduce_dtype: str | None = None  # of sums over the mesh; None: of activations
    gradient_reduce_dtype: str | None = None  # of gradients' sums; None: of accumulation

    @classmethod
    def of(cls, config: ModelConfig, rules: ShardingRules) -> "Compute":
        """Returns the arithmetic that a config asks for."""
        reductions = config.reduce_dtype, config.gradient_reduce_dtype
        return cls(config.dtype, config.accumulation_dtype, rules, *reductions)

    def reshard(self, x: Array, axes: Axes) -> Array:
        """Splits an array over the mesh as its logical axes say; without a mesh, returns it."""
        spec = self.rules.spec(axes, x.shape)
        return x if spec is None else jax.sharding.reshard(x, spec)

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
          subscripts: of two operands and the result, a letter an index; each index stands in two of
            the three, or in all.
          x: an activation.
          w: a parameter, which is gathered over its ``embed`` axis, or another activation.
          axes: logical axes of the result; a summed axis that is sharded becomes a sum over its
            mesh axis here.
          dtype: of the result; that of activations when None.
          bias: added to the sums before they are rounded; of a shape that stretches to theirs.
        """
        return self.einsums(subscripts, x, [w], axes=[axes], dtype=dtype, biases=[bias])[0]

    def einsums(
        self,
        subscripts: str,
        x: Array,
        ws: Sequence[nnx.Param | Array],
        *,
        axes: Sequence[Axes],
        dtype: str | None = None,
        biases: Sequence[Array | None] | None = None,
    ) -> list[Array]:
        """Multiplies one activation by several parameters; its cotangent is summed once.

        Arguments as of ``einsum``, with axes and a bias for each.
        """
        subscripts = subscripts.replace(" ", "")
        terms = re.fullmatch(r"(\w+),(\w+)->(\w*)", subscripts)
        left, right, out = terms.groups() if terms else ("", "", "")
        if not terms or any(
            (i in left) + (i in right) + (i in out) < 2 for i in left + right + out
        ):
            raise UserError(
                f"einsum {subscripts!r} needs two operands, a result, and each index in two of the "
                "three, such as 'btd,df->btf'; sum over other indices before."
            )
        gathered, results = [], []
        for w, of_result in zip(ws, axes, strict=True):
            sizes = dict(zip(left + right, x.shape + w.shape, strict=True))
            results.append(self.rules.spec(of_result, [sizes[i] for i in out]))
            gathered.append(self.gathered(w) if isinstance(w, nnx.Param) else None)
        arrays = [w[...] if isinstance(w, nnx.Param) else w for w in ws]
        products = multiply(
            subscripts,
            x.astype(self.dtype),
            arrays,
            self.accumulation_dtype,
            gathered,
            results,
            self.reduce_dtype or self.dtype,
            self.gradient_reduce_dtype,
        )
        return [
            checkpoint_name(
                (y if bias is None else y + bias.astype(y.dtype)).astype(dtype or self.dtype),
                PRODUCT,
            )
            for y, bias in zip(products, biases or [None] * len(products), strict=True)
        ]

    def gathered(self, parameter: nnx.Param) -> PartitionSpec | None:
        """Returns how a parameter is sharded while it is used: no more over its ``embed`` axis."""
        axes = tuple(None if axis == "embed" else axis for axis in parameter.axes)
        return self.rules.spec(axes, parameter.shape)

    def rows(self, table: nnx.Param, index: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks up rows of a table, in the dtype of activations."""
        result = self.rules.spec(WHOLE_RESIDUAL, (*index.shape, table.shape[1]))
        rows = lookup(table[...], index, self.dtype, self.gathered(table), result)
        return self.reshard(rows, RESIDUAL)

    def dropout(
        self, x: Float[Array, "*shape"], rate: float, key: Array | None, axes: Axes
    ) -> Float[Array, "*shape"]:
        """Zeroes elements with probability ``rate``, scales the rest; without a key, returns x."""
        if key is None or rate == 0:
            return x
        spec = self.rules.spec(axes, x.shape)
        chance = jax.random.uniform(key, x.shape, out_sharding=spec)
        return jnp.where(chance < rate, 0, x / (1 - rate)).astype(x.dtype)
