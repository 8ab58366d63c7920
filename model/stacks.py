"""Layers cut from their stacks: all at once, or each where it is used."""

import dataclasses
import functools
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from numpy.lib.mixins import NDArrayOperatorsMixin

from model.axes import platform


def unstacked(stacks: Any, count: int) -> list[Any]:
    """Cuts stacked layers apart; their gradients are joined at once, and not padded and added."""
    leaves, structure = jax.tree.flatten(stacks)
    cut = [jax.lax.split(leaf, (1,) * count, axis=0) for leaf in leaves]
    layers = [[parts[i].squeeze(0) for parts in cut] for i in range(count)]
    return [jax.tree.unflatten(structure, layer) for layer in layers]


def cut_where_used(blocks: Any, count: int) -> list[Any]:
    """Cuts stacked blocks apart, but their matrices only where each is multiplied.

    Cut before, a copy of all matrices would be held from the forward pass to the backward.

    Args:
      blocks: of stacked parameters.
      count: layers in the stack.
    """
    layers = unstacked(blocks, count)

    def later(i: int) -> Any:
        def replaced(stacked: nnx.Param, own: nnx.Param) -> nnx.Variable:
            if own.kind != "matrix":
                return own
            return own.replace(Slice(jax.lax.stop_gradient(stacked[...]), own[...], i))

        return jax.tree.map(replaced, blocks, layers[i], is_leaf=_is_parameter)

    return [later(i) for i in range(count)]


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Param)


@no_type_check  # as a pytree it also holds gradients of integers, and jax's placeholders
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slice(NDArrayOperatorsMixin):
    """One matrix of a stack, which ``[...]`` cuts out; so does whatever treats it as an array.

    Attributes:
      stack: whose values are read.
      gradient: an array of the slice's shape that takes its gradient; its values are not read.
      index: in the stack.
      zero: added to the index; see ``after``.
    """

    stack: Float[Array, "layers *shape"]
    gradient: Float[Array, "*shape"]
    index: int = dataclasses.field(metadata=dict(static=True))
    zero: Int[Array, ""] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the slice."""
        return self.gradient.shape

    @property
    def ndim(self) -> int:
        """Of the slice."""
        return self.gradient.ndim

    @property
    def dtype(self) -> Any:
        """Of the slice."""
        return self.gradient.dtype

    def __getitem__(self, places: Any) -> Array:
        """Returns the values at places of the slice."""
        return _read(self.index, self.stack, self.gradient, self.zero)[places]

    def __jax_array__(self) -> Array:
        return self[...]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *given: Any) -> Array:
        """Answers operators, with jax arrays."""
        if method != "__call__":
            return NotImplemented
        whole = (part[...] if isinstance(part, Slice) else part for part in given)
        return getattr(jnp, ufunc.__name__)(*whole)

    def __getattr__(self, name: str) -> Any:
        """Finds the methods of an array, such as ``reshape`` and ``T``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self[...], name)

    def after(self, y: Float[Array, "*shape"]) -> "Slice":
        """Returns the same slice, but cut no sooner than an array is there.

        A CPU's compiler would cut all layers first. It is not told that the number which it has
        to wait for is always zero.
        """
        first = jax.lax.bitcast_convert_type(y.reshape(-1)[0].astype(jnp.float32), jnp.int32)
        return dataclasses.replace(self, zero=((first | 1) == 0).astype(jnp.int32))


def after(parts: Any, y: Array) -> Any:
    """Ties what may be slices to an array, that they are made anew and not before it is there."""
    alone = all(size == 1 for size in jax.sharding.get_abstract_mesh().shape.values())
    if platform() != "cpu" or not alone:
        return jax.lax.optimization_barrier((parts, y))[0]

    def tied(part: Any) -> Any:
        if isinstance(part, Slice):
            return part.after(y)
        return jax.lax.optimization_barrier((part, y))[0]

    return jax.tree.map(tied, parts, is_leaf=lambda part: isinstance(part, Slice))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(index: int, stack: Array, gradient: Array, zero: Array | None) -> Array:
    del gradient
    if zero is None:
        return jax.lax.index_in_dim(stack, index, keepdims=False)
    return jax.lax.dynamic_index_in_dim(stack, index + zero, keepdims=False)


def _read_forward(
    index: int, stack: Array, gradient: Array, zero: Array | None
) -> tuple[Array, None]:
    return _read(index, stack, gradient, zero), None


def _read_backward(index: int, kept: None, given: Array) -> tuple[None, Array, None]:
    del index, kept
    return None, given, None


_read.defvjp(_read_forward, _read_backward)
