"""What a TPU or a GPU does: the plain way."""

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

Spec = PartitionSpec | None


class Plain:
    """How things are computed on a device that is good at what XLA makes of them."""

    # Of the logits that the loss holds at once: for each chunk of tokens the gradient of the table
    # is read and written whole, which a chunk must be long enough to hide.
    logit_bytes = 256 * 2**20

    # Layers up to which a network is unrolled, where a config does not say.
    unrolled = 0

    # The attention backend for few tokens.
    short_attention = "dense"

    # Whether a cache holds keys and values of 16 bits in the wider type of sums.
    wide_cache = False

    # Compiler options of a program whose products have one row each.
    one_row_options: ClassVar[dict[str, str]] = {}

    def einsum(self, subscripts: str, x: Array, w: Array, *, wide: str, spec: Spec) -> Array:
        """Multiplies two operands of one type.

        Results come in the order of the operands' indices and are transposed then, which costs a
        TPU nothing; to make them in another order, XLA transposes a matrix first.

        Args:
          subscripts: as of ``jnp.einsum``.
          x: the first operand.
          w: the second.
          wide: type of the sums and of the result.
          spec: how the result is sharded over the mesh; None without one.
        """
        left, right, out = re.split(",|->", subscripts)
        made = "".join(dict.fromkeys(i for i in left + right if i in out))
        if spec is not None:
            parts = dict(zip(out, spec.partitions, strict=True))
            spec = PartitionSpec(*(parts[i] for i in made), unreduced=spec.unreduced)
        result = jnp.einsum(
            f"{left},{right}->{made}", x, w, preferred_element_type=wide, out_sharding=spec
        )
        return result if made == out else result.transpose([made.index(i) for i in out])

    def products(
        self, subscripts: str, x: Array, ws: Sequence[Array], wide: str, specs: Sequence[Spec]
    ) -> list[Array]:
        """Multiplies one operand by each of several; arguments as of ``einsum``."""
        pairs = zip(ws, specs, strict=True)
        return [self.einsum(subscripts, x, w, wide=wide, spec=spec) for w, spec in pairs]

    def sum_of_products(
        self, subscripts: str, pairs: Sequence[tuple[Array, Array]], wide: str, spec: Spec
    ) -> Array:
        """Adds the products of pairs of operands; arguments as of ``einsum``."""
        first, *rest = (self.einsum(subscripts, x, w, wide=wide, spec=spec) for x, w in pairs)
        return sum(rest, first)

    def layer(
        self, function: Callable, block: PyTree, stack: PyTree, index: int, inputs: tuple
    ) -> PyTree:
        """Returns ``function(block, *inputs)``: one layer of a network that is unrolled.

        ``block`` was cut from ``stack`` at ``index``.
        """
        del stack, index
        return function(block, *inputs)

    def carried(self, slots: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Returns what the loop of decoding carries of the slots of a cache, layer by layer."""
        return slots

    def uncarried(self, slots: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Undoes ``carried``."""
        return slots
