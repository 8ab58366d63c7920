"""Wrappers of optax transformations, for parameters that go by name."""

from collections.abc import Callable, Container
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree

Arrays = dict[str, Array]


def only(chosen: Container[str], inner: optax.GradientTransformation) -> Any:
    """Transforms the updates of the chosen parameters, and passes the others on."""

    def some(arrays: Arrays) -> Arrays:
        return {name: array for name, array in arrays.items() if name in chosen}

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        changed, state = inner.update(some(updates), state, some(arrays))
        return updates | changed, state

    return optax.GradientTransformation(lambda arrays: inner.init(some(arrays)), update)


def by_layer(axes: dict[str, int], inner: optax.GradientTransformation) -> Any:
    """Transforms each layer of a stack alone, so that norms and factors do not span the stack.

    Args:
      axes: the axis of layers of each parameter that has one: one at least, and all as many layers.
      inner: what of its state does not depend on layers, such as a counter, is kept once.
    """

    def mapped(arrays: Arrays) -> dict[str, int | None]:
        return {name: axes.get(name) for name in arrays}

    def state_axes(arrays: Arrays) -> PyTree:
        def one(name: str, array: Array) -> jax.ShapeDtypeStruct:
            shape = list(array.shape)
            if name in axes:
                del shape[axes[name]]
            return jax.ShapeDtypeStruct(shape, array.dtype)

        stack = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
        layer = {name: one(name, array) for name, array in arrays.items()}
        shapes = jax.eval_shape(inner.init, stack), jax.eval_shape(inner.init, layer)
        return jax.tree.map(lambda s, one: None if s.shape == one.shape else 0, *shapes)

    def init(arrays: Arrays) -> PyTree:
        return jax.vmap(inner.init, (mapped(arrays),), state_axes(arrays))(arrays)

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        of, kept = mapped(arrays), state_axes(arrays)
        return jax.vmap(inner.update, (of, kept, of), (of, kept))(updates, state, arrays)

    return optax.GradientTransformation(init, update)


def across_shards(make: Callable[[Any], optax.GradientTransformation], numbers: Any) -> Any:
    """Transforms whole parameters: the compiler places what is made between their shards.

    Args:
      make: returns the transformation; it may reshape, transpose and contract.
      numbers: the argument of ``make``; may be traced.
    """

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        def whole(numbers: Any, *rest: PyTree) -> tuple[Arrays, PyTree]:
            return make(numbers).update(*rest)

        if jax.sharding.get_abstract_mesh().empty:
            return whole(numbers, updates, state, arrays)
        places = jax.tree.map(lambda x: jax.typeof(x).sharding, (arrays, state))
        whole = jax.sharding.auto_axes(whole, out_sharding=places)
        return whole(numbers, updates, state, arrays)

    return optax.GradientTransformation(make(numbers).init, update)


def in_state_dtype(inner: optax.GradientTransformation) -> Any:
    """Keeps the state in the dtypes that it began with; numbers in float32 would widen it."""

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        updates, new = inner.update(updates, state, arrays)
        return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)

    return optax.GradientTransformation(inner.init, update)
