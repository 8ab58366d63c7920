"""What a CPU does in another way than accelerators; it may be left out of ``choice.DEVICES``."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
from jaxtyping import Array, PyTree

from model.devices import matrices, recut
from model.devices.plain import Plain, Spec


class CPU(Plain):
    """A CPU, whose compiler needs products, loops and 16-bit arrays put to it in its own way."""

    # Measured at a vocabulary of 50k, longer chunks gain nothing here.
    logit_bytes = 64 * 2**20

    # So many run faster unrolled, and still compile soon.
    unrolled = 12

    # Its pieces stay in the cache.
    short_attention = "pieces"

    # XLA would widen all slots to read or write one.
    wide_cache = True

    # Without XLA's library of kernels, which writes each term of a 16-bit sum to memory.
    one_row_options: ClassVar[dict[str, str]] = {"xla_cpu_experimental_ynn_fusion_type": ""}

    def einsum(self, subscripts: str, x: Array, w: Array, *, wide: str, spec: Spec) -> Array:
        """Merges indices, so that each product is one of two matrices."""
        return matrices.einsum(subscripts, x, w, wide)

    def products(
        self, subscripts: str, x: Array, ws: Sequence[Array], wide: str, specs: Sequence[Spec]
    ) -> list[Array]:
        """Multiplies by all at once, which is faster; but a few rows cost less than joining ws."""
        if len(ws) == 1 or x.size < ws[0].size:
            return super().products(subscripts, x, ws, wide, specs)
        return matrices.products(subscripts, x, ws, wide)

    def sum_of_products(
        self, subscripts: str, pairs: Sequence[tuple[Array, Array]], wide: str, spec: Spec
    ) -> Array:
        """Sums within one product, likewise."""
        if len(pairs) == 1:
            return super().sum_of_products(subscripts, pairs, wide, spec)
        return matrices.sum_of_products(subscripts, pairs, wide)

    def layer(
        self, function: Callable, block: PyTree, stack: PyTree, index: int, inputs: tuple
    ) -> PyTree:
        """Cuts the block from its stack again for the gradient."""
        return recut.layer(function, block, stack, index, inputs)

    def carried(self, slots: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Leaves out the axis of one row: XLA copies the slots that it updates otherwise."""
        lone = all(layer["key"].ndim == 4 and layer["key"].shape[0] == 1 for layer in slots)
        return jax.tree.map(lambda x: x[0], slots) if lone else slots

    def uncarried(self, slots: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Gives the row its axis again: keys [G, S, K] lack it."""
        lone = all(layer["key"].ndim == 3 for layer in slots)
        return jax.tree.map(lambda x: x[None], slots) if lone else slots
