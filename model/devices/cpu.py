"""What a CPU does in another way than accelerators; it may be left out of ``choice.DEVICES``."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from model.devices import matrices
from model.devices.plain import Plain, Spec

# Layers up to which a CPU runs an unrolled network faster, and still compiles it soon.
UNROLLED = 12


class CPU(Plain):
    """A CPU, whose compiler needs products, loops and 16-bit arrays put to it in its own way."""

    # Measured at a vocabulary of 50k, longer chunks gain nothing here.
    logit_bytes = 64 * 2**20

    def einsum(self, subscripts: str, x: Array, w: Array, *, wide: str, spec: Spec) -> Array:
        """Merges indices, so that each product is one of two matrices; not over several devices."""
        if _several_devices(spec):
            return super().einsum(subscripts, x, w, wide=wide, spec=spec)
        return matrices.einsum(subscripts, x, w, wide)

    def products(
        self, subscripts: str, x: Array, ws: Sequence[Array], wide: str, specs: Sequence[Spec]
    ) -> list[Array]:
        """Multiplies by all at once, which is faster; but a few rows cost less than joining ws."""
        if len(ws) == 1 or x.size < ws[0].size or any(map(_several_devices, specs)):
            return super().products(subscripts, x, ws, wide, specs)
        return matrices.products(subscripts, x, ws, wide)

    def sum_of_products(
        self, subscripts: str, pairs: Sequence[tuple[Array, Array]], wide: str, spec: Spec
    ) -> Array:
        """Sums within one product, likewise."""
        if len(pairs) == 1 or _several_devices(spec):
            return super().sum_of_products(subscripts, pairs, wide, spec)
        return matrices.sum_of_products(subscripts, pairs, wide)

    def scans(self, num_layers: int) -> bool:
        """Unrolls a few layers."""
        return num_layers > UNROLLED

    def short_attention(self) -> str:
        """Returns the backend whose pieces stay in the cache."""
        return "pieces"

    def cache_dtype(self, dtype: str, wide: str) -> str:
        """Holds 16 bits as ``wide``: XLA would widen all slots to read or write one."""
        return wide if jnp.dtype(dtype).itemsize == 2 else dtype

    def carried(self, slots: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Leaves out the axis of one row: XLA copies the slots that it updates otherwise."""
        lone = all(layer["key"].ndim == 4 and layer["key"].shape[0] == 1 for layer in slots)
        return jax.tree.map(lambda x: x[0], slots) if lone else slots

    def uncarried(self, slots: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Gives the row its axis again: keys [G, S, K] lack it."""
        lone = all(layer["key"].ndim == 3 for layer in slots)
        return jax.tree.map(lambda x: x[None], slots) if lone else slots

    def one_row_options(self, dtype: str) -> dict[str, str]:
        """Leaves XLA's library of kernels out, which writes each term of a sum to memory."""
        return (
            {"xla_cpu_experimental_ynn_fusion_type": ""} if jnp.dtype(dtype).itemsize == 2 else {}
        )


def _several_devices(spec: Spec) -> bool:
    return spec is not None and jax.sharding.get_abstract_mesh().size > 1
