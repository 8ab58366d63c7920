"""The one declaration of a parameter: shape, logical axes, kind and initial scale.

Shardings, counts, optimizer groups and floating-point operations are all read from it.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from model.axes import Axes, ShardingRules

Kind = Literal["matrix", "embedding", "unembedding", "gain", "bias"]

# Axes that number matrices rather than span them: a parameter [D, H, K] is H matrices D x K.
STACKED = ("layers", "heads", "kv_heads")


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What is known of a parameter without its value.

    Attributes:
      path: its name in the model, as "blocks.0.attention.query".
      shape: with the stacked layers first, where it is in a block.
      axes: a logical axis a dimension.
      kind: "matrix" (multiplies activations), "embedding", "unembedding", "gain" or "bias".
      contracted: the axes summed over when it multiplies; empty but for matrices.
      dtype: of its elements.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    kind: Kind
    contracted: tuple[str, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def length(self, axis: str) -> int:
        """Returns the length of a logical axis; 1 where the parameter does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def rows(self) -> tuple[int, ...]:
        """Dimensions that one of its matrices sums over."""
        return tuple(
            i for i, a in enumerate(self.axes) if a in self.contracted and a not in STACKED
        )

    @property
    def columns(self) -> tuple[int, ...]:
        """Dimensions that one of its matrices writes."""
        return tuple(
            i for i, a in enumerate(self.axes) if a not in self.contracted and a not in STACKED
        )


class Declare:
    """Makes the parameters of one module; each is drawn from the module's key and its name.

    A parameter's values do not depend on the mesh, nor on the other parameters of its module.
    """

    def __init__(self, key: PRNGKeyArray, rules: ShardingRules, dtype: str):
        """Args: key of the module, rules that place its parameters, dtype of their elements."""
        self.key = key
        self.rules = rules
        self.dtype = dtype

    def inside(self, name: str) -> "Declare":
        """Returns the same for a submodule of this name."""
        return Declare(_fold(self.key, name), self.rules, self.dtype)

    def matrix(
        self, name: str, shape: tuple[int, ...], axes: Axes, contracted: str, gain: float = 1.0
    ) -> nnx.Param:
        """Declares a matrix, or a stack of them, with variance ``gain^2 * 2/5 / fan_in``.

        The scale is the small initialisation of Nguyen and Salazar (2019), "Transformers
        without tears", section 3.2, taken over the fan-in of each matrix.

        Args:
          name: unique in the module.
          shape: of one layer.
          axes: a logical axis a dimension.
          contracted: the axes that it sums over, with spaces between; their lengths make fan_in.
          gain: multiplies the standard deviation.
        """
        summed = tuple(contracted.split())
        fan_in = math.prod(shape[axes.index(axis)] for axis in summed)
        return self._normal(name, shape, axes, "matrix", gain * math.sqrt(0.4 / fan_in), summed)

    def table(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes,
        stddev: float,
        kind: Literal["embedding", "unembedding"] = "embedding",
    ) -> nnx.Param:
        """Declares a table of vectors drawn with a standard deviation."""
        return self._normal(name, shape, axes, kind, stddev, ())

    def gain(self, name: str, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
        """Declares factors that begin at 1."""
        return self._constant(name, shape, axes, "gain", 1.0)

    def bias(self, name: str, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
        """Declares terms that begin at 0."""
        return self._constant(name, shape, axes, "bias", 0.0)

    def _normal(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes,
        kind: Kind,
        stddev: float,
        contracted: tuple[str, ...],
    ) -> nnx.Param:
        spec = self.rules.spec(axes, shape)
        key = _fold(self.key, name)
        value = jax.random.normal(key, shape, self.dtype, out_sharding=spec)
        # The barrier keeps XLA from merging the factors, which it would do without a mesh only.
        value = stddev * jax.lax.optimization_barrier(value)
        return nnx.Param(value, axes=axes, kind=kind, contracted=contracted)

    def _constant(
        self, name: str, shape: tuple[int, ...], axes: Axes, kind: Kind, value: float
    ) -> nnx.Param:
        del name
        spec = self.rules.spec(axes, shape)
        array = jnp.full(shape, value, self.dtype, out_sharding=spec)
        return nnx.Param(array, axes=axes, kind=kind, contracted=())


def declarations(model: nnx.Module) -> list[Declaration]:
    """Returns the declarations of a model, abstract or real, in the order of its leaves."""
    return [
        Declaration(
            path=path,
            shape=tuple(param.shape),
            axes=("layers",) * (len(param.shape) - len(param.axes)) + param.axes,
            kind=param.kind,
            contracted=param.contracted,
            dtype=jnp.dtype(param.dtype).name,
        )
        for path, param in parameters(model)
    ]


def parameters(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """Yields each parameter with its name, as ("blocks.0.attention.query", Param)."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Param))
    for path, param in leaves:
        yield path_name(path), param


def path_name(path: Sequence[Any]) -> str:
    """Returns a pytree path as one word, its keys with dots between."""
    keys = (getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return ".".join(str(key) for key in keys)


def _fold(key: Array, name: str) -> Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
