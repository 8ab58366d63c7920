"""The one declaration of a parameter: shape, logical axes, kind and initial scale.

Shardings, counts, optimizer groups and floating-point operations are all read from it.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from model.axes import Axes, ShardingRules

Module = TypeVar("Module", bound=nnx.Module)
Kind = Literal["matrix", "embedding", "unembedding", "gain", "bias"]


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
      stacked: the axes that number matrices rather than span them: [D, H, K] may be H matrices
        D x K.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    kind: Kind
    contracted: tuple[str, ...]
    dtype: str
    stacked: tuple[str, ...] = ()

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
            i for i, a in enumerate(self.axes) if a in self.contracted and a not in self.stacked
        )

    @property
    def columns(self) -> tuple[int, ...]:
        """Dimensions that one of its matrices writes."""
        return tuple(
            i for i, a in enumerate(self.axes) if a not in self.contracted and a not in self.stacked
        )


class Declare:
    """Makes the parameters of one module; each is drawn from the module's key and its name.

    A parameter's values do not depend on the mesh, nor on the other parameters of its module.
    """

    def __init__(
        self, key: PRNGKeyArray, rules: ShardingRules, dtype: str, mapped: tuple[str, ...] = ()
    ):
        """Args: see below.

        key: of the module.
        rules: split its parameters over the mesh.
        dtype: of their elements.
        mapped: axes over which the constructor is mapped, such as the layers of a stack of blocks.
        """
        self.key = key
        self.rules = rules
        self.dtype = dtype
        self.mapped = mapped

    def inside(self, name: str) -> "Declare":
        """Returns the same for a submodule of this name."""
        return Declare(_fold(self.key, name), self.rules, self.dtype, self.mapped)

    def matrix(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes,
        contracted: str,
        stacked: str = "",
        gain: float = 1.0,
    ) -> nnx.Param:
        """Declares a matrix, or a stack of them, with variance ``gain^2 * 2/5 / fan_in``.

        The scale is the small initialisation of Nguyen and Salazar (2019), "Transformers
        without tears", section 3.2, taken over the fan-in of the whole product.

        Args:
          name: unique in the module.
          shape: of one layer.
          axes: a logical axis a dimension.
          contracted: the axes that it sums over, with spaces between; their lengths make fan_in.
          stacked: the axes that number matrices rather than span one, with spaces between.
          gain: multiplies the standard deviation.

        Raises:
          ValueError: what is not stacked has no axis to sum over, or none to write.
        """
        summed, stack = tuple(contracted.split()), tuple(stacked.split())
        spanned = [axis for axis in axes if axis not in stack]
        sums = [axis in summed for axis in spanned]
        if not {*summed, *stack} <= set(axes) or all(sums) or not any(sums):
            raise ValueError(
                f"the matrix {name} with axes {axes}, contracted={contracted!r} and "
                f"stacked={stacked!r} has no rows or no columns; name other axes."
            )
        fan_in = math.prod(shape[axes.index(axis)] for axis in summed)
        stddev = gain * math.sqrt(0.4 / fan_in)
        return self._normal(name, shape, axes, stddev, "matrix", contracted=summed, stacked=stack)

    def table(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes,
        stddev: float,
        kind: Literal["embedding", "unembedding"] = "embedding",
    ) -> nnx.Param:
        """Declares a table of vectors drawn with a standard deviation."""
        return self._normal(name, shape, axes, stddev, kind)

    def gain(self, name: str, shape: tuple[int, ...], axes: Axes, start: float = 1.0) -> nnx.Param:
        """Declares factors that begin at 1, or at ``start``."""
        return self._constant(name, shape, axes, start, "gain")

    def bias(self, name: str, shape: tuple[int, ...], axes: Axes, start: float = 0.0) -> nnx.Param:
        """Declares terms that begin at 0, or at ``start``."""
        return self._constant(name, shape, axes, start, "bias")

    def _normal(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes,
        stddev: float,
        kind: Kind,
        **declared: tuple[str, ...],
    ) -> nnx.Param:
        spec = self.rules.spec(axes, shape)
        key = _fold(self.key, name)
        value = jax.random.normal(key, shape, self.dtype, out_sharding=spec)
        # The barrier keeps XLA from merging the factors, which it would do without a mesh only.
        value = stddev * jax.lax.optimization_barrier(value)
        return self._parameter(value, axes, kind, **declared)

    def _constant(
        self, name: str, shape: tuple[int, ...], axes: Axes, value: float, kind: Kind
    ) -> nnx.Param:
        del name
        spec = self.rules.spec(axes, shape)
        return self._parameter(jnp.full(shape, value, self.dtype, out_sharding=spec), axes, kind)

    def _parameter(
        self,
        value: Array,
        axes: Axes,
        kind: Kind,
        contracted: tuple[str, ...] = (),
        stacked: tuple[str, ...] = (),
    ) -> nnx.Param:
        more: dict[str, Any] = dict(contracted=contracted, stacked=stacked, mapped=self.mapped)
        return nnx.Param(value, axes=axes, kind=kind, **more)


def declarations(model: nnx.Module) -> list[Declaration]:
    """Returns the declarations of a model, abstract or real, in the order of its leaves."""
    return [
        Declaration(
            path=path,
            shape=tuple(param.shape),
            axes=param.mapped + param.axes,
            kind=param.kind,
            contracted=param.contracted,
            stacked=param.mapped + param.stacked,
            dtype=jnp.dtype(param.dtype).name,
        )
        for path, param in parameters(model)
    ]


def parameters(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """Yields each parameter with its name, as ("blocks.0.attention.query", Param)."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Param))
    for path, param in leaves:
        yield path_name(path), param


def named_arrays(model: nnx.Module) -> dict[str, Any]:
    """Returns the parameters, or their shapes, by name: {"blocks.0.attention.query": array}."""
    return dict(zip((name for name, _ in parameters(model)), jax.tree.leaves(model), strict=True))


def with_arrays(model: Module, arrays: dict[str, Array]) -> Module:
    """Returns the model with other parameters, by name."""
    leaves = [arrays[name] for name, _ in parameters(model)]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def path_name(path: Sequence[Any]) -> str:
    """Returns a pytree path as one word, its keys with dots between."""
    keys = (getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return ".".join(str(key) for key in keys)


def _fold(key: Array, name: str) -> Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
