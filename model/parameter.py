"""The one declaration of a parameter: shape, logical axes, kind and initial scale.

Shardings, counts, optimizer groups and floating-point operations are all read from it.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.tree_util import keystr
from jaxtyping import Array, PRNGKeyArray, PyTree

from configs.errors import UserError, nearest
from model.axes import Axes, ShardingRules

Shape = tuple[int, ...]
Module = TypeVar("Module", bound=nnx.Module)
Kind = Literal["matrix", "embedding", "unembedding", "gain", "bias"]


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What is known of a parameter without its value."""

    path: str  # its name in the model, as "blocks.0.attention.query"
    shape: Shape  # with the stacked layers first, where it is in a block
    axes: Axes  # a logical axis a dimension
    kind: Kind  # a "matrix" multiplies activations
    contracted: tuple[str, ...]  # axes summed over when it multiplies; empty but for matrices
    dtype: str
    # Axes that number matrices rather than span them: [D, H, K] may be H matrices D x K.
    stacked: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def length(self, axis: str) -> int:
        """Returns the length of a logical axis; 1 where the parameter does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def layers(self) -> "list[Declaration]":
        """Returns a declaration for each layer of a stack, ``path.0`` and on; else itself alone."""
        if "layers" not in self.axes:
            return [self]
        rest = tuple(axis for axis in self.stacked if axis != "layers")
        one = dataclasses.replace(self, shape=self.shape[1:], axes=self.axes[1:], stacked=rest)
        return [dataclasses.replace(one, path=f"{self.path}.{i}") for i in range(self.shape[0])]

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


@dataclasses.dataclass(frozen=True)
class Declare:
    """Makes the parameters of one module; each is drawn from the module's key and its name.

    A parameter's values do not depend on the mesh, nor on the other parameters of its module.
    """

    key: PRNGKeyArray  # of the module
    rules: ShardingRules  # split its parameters over the mesh
    dtype: str
    # Axes over which the constructor is mapped, such as the layers of a stack of blocks.
    mapped: tuple[str, ...] = ()
    names: set[str] = dataclasses.field(default_factory=set)  # that are declared

    def inside(self, name: str) -> "Declare":
        """Returns the same for a submodule of this name."""
        return dataclasses.replace(self, key=_fold(self.key, name), names=set())

    def matrix(
        self,
        name: str,
        shape: Shape,
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
          shape: of one layer, with a logical axis of ``axes`` a dimension.
          contracted: the axes that it sums over, with spaces between; their lengths make fan_in.
          stacked: the axes that number matrices rather than span one, with spaces between.
          gain: multiplies the standard deviation.

        Raises:
          UserError: what is not stacked has no axis to sum over, or none to write.
        """
        summed, stack = tuple(contracted.split()), tuple(stacked.split())
        spanned = [axis for axis in axes if axis not in stack]
        sums = [axis in summed for axis in spanned]
        if not {*summed, *stack} <= set(axes) or all(sums) or not any(sums):
            raise UserError(
                f"the matrix {name} with axes {axes}, contracted={contracted!r} and "
                f"stacked={stacked!r} has no rows or no columns; name other axes."
            )
        fan_in = math.prod(shape[axes.index(axis)] for axis in summed)
        stddev = gain * math.sqrt(0.4 / fan_in)
        return self._drawn(name, shape, axes, stddev, "matrix", summed, stack)

    def table(
        self, name: str, shape: Shape, axes: Axes, stddev: float, kind: Kind = "embedding"
    ) -> nnx.Param:
        """Declares a table of vectors drawn with a standard deviation."""
        return self._drawn(name, shape, axes, stddev, kind)

    def gain(self, name: str, shape: Shape, axes: Axes, start: float = 1.0) -> nnx.Param:
        """Declares factors that begin at 1, or at ``start``."""
        return self._constant(name, shape, axes, start, "gain")

    def bias(self, name: str, shape: Shape, axes: Axes, start: float = 0.0) -> nnx.Param:
        """Declares terms that begin at 0, or at ``start``."""
        return self._constant(name, shape, axes, start, "bias")

    def _drawn(
        self, name: str, shape: Shape, axes: Axes, stddev: float, kind: Kind, *groups: Axes
    ) -> nnx.Param:
        spec = self._spec(name, shape, axes)
        value = jax.random.normal(_fold(self.key, name), shape, self.dtype, out_sharding=spec)
        # The barrier keeps XLA from merging the factors, which it would do without a mesh only.
        return self._parameter(stddev * jax.lax.optimization_barrier(value), axes, kind, *groups)

    def _constant(self, name: str, shape: Shape, axes: Axes, start: float, kind: Kind) -> nnx.Param:
        spec = self._spec(name, shape, axes)
        return self._parameter(jnp.full(shape, start, self.dtype, out_sharding=spec), axes, kind)

    def _spec(self, name: str, shape: Shape, axes: Axes) -> PartitionSpec | None:
        """Returns how a parameter is sharded; refuses a name or axes that must be a mistake."""
        if name in self.names:
            raise UserError(f"the parameter {name} is declared twice; give one another name.")
        if len(shape) != len(axes) or 0 in shape or {*axes} & {*self.mapped}:
            raise UserError(
                f"the parameter {name} {shape} with axes {axes} needs one for each dimension, none "
                f"of size 0 and none of its stack {self.mapped}."
            )
        sharded = [field.name for field in dataclasses.fields(self.rules)]
        for axis in axes:
            near = axis and get_close_matches(axis, sharded, cutoff=0.85)
            if axis and near and axis not in sharded:
                raise UserError(
                    f"the parameter {name} has an axis {axis!r}{nearest(axis, sharded)} that "
                    f"nothing shards; write one of {', '.join(sharded)}, or a name unlike these."
                )
        self.names.add(name)
        return self.rules.spec(axes, shape)

    def _parameter(
        self, value: Array, axes: Axes, kind: Kind, contracted: Axes = (), stacked: Axes = ()
    ) -> nnx.Param:
        groups: dict[str, Any] = dict(contracted=contracted, stacked=stacked, mapped=self.mapped)
        return nnx.Param(value, axes=axes, kind=kind, **groups)


def declarations(model: nnx.Module) -> list[Declaration]:
    """Returns the declarations of a model, abstract or real, in the order of its leaves.

    Raises:
      UserError: a parameter, or other array, was made otherwise.
    """
    made = parameters(model)
    for path, leaf in by_name(model, lambda x: isinstance(x, nnx.Variable)).items():
        if path not in made or not hasattr(leaf, "mapped"):
            raise UserError(
                f"{path} is not declared; make parameters with declare.matrix, table, gain or bias "
                "(nnx.Linear and the like do not), and keep no other arrays in a module."
            )
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
        for path, param in made.items()
    ]


def parameters(model: nnx.Module) -> dict[str, nnx.Param]:
    """Returns the parameters by name, as {"blocks.0.attention.query": Param}."""
    return by_name(model, lambda x: isinstance(x, nnx.Param))


def named_arrays(model: nnx.Module) -> dict[str, Any]:
    """Returns the arrays of the parameters, or their shapes, by the same names."""
    return dict(zip(parameters(model), jax.tree.leaves(model), strict=True))


def with_arrays(model: Module, arrays: dict[str, Array]) -> Module:
    """Returns the model with other arrays, by name."""
    leaves = [arrays[name] for name in parameters(model)]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def by_name(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Names each leaf by its path, as {"adamw.mu.blocks.0.attention.query": array}."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _fold(key: Array, name: str) -> Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
