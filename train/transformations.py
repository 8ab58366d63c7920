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
        return {n: changed[n] if n in chosen else update for n, update in updates.items()}, state

    return optax.GradientTransformation(lambda arrays: inner.init(some(arrays)), update)


def by_layer(axes: dict[str, int], inner: optax.GradientTransformation) -> Any:
    """Transforms each layer of a stack alone, so that norms and factors do not span the stack.

    Args:
      axes: the axis of layers of each parameter that has one: one at least, and all as many layers.
      inner: what of its state does not depend on layers, such as a counter, is kept once.
    """

    def mapped(arrays: Arrays) -> dict[str, int | None]:
        return {name: axes.get(name) for name in arrays}

    def first(arrays: Arrays) -> Arrays:
        cut = {n: jax.lax.index_in_dim(arrays[n], 0, axis, False) for n, axis in axes.items()}
        return arrays | cut

    def kept(arrays: Arrays) -> PyTree:
        """The axis of layers in each part of the state: what depends on them has another shape."""
        stack = jax.eval_shape(inner.init, arrays)
        layer = jax.eval_shape(lambda arrays: inner.init(first(arrays)), arrays)
        return jax.tree.map(lambda s, one: None if s.shape == one.shape else 0, stack, layer)

    def init(arrays: Arrays) -> PyTree:
        return jax.vmap(inner.init, (mapped(arrays),), kept(arrays))(arrays)

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        of, within = mapped(arrays), kept(arrays)
        return jax.vmap(inner.update, (of, within, of), (of, within))(updates, state, arrays)

    return optax.GradientTransformation(init, update)


def across_shards(make: Callable[..., Any], numbers: Any, *rest: Any) -> Any:
    """Transforms whole parameters: the compiler places what is made between their shards.

    The state keeps the dtypes that it began with, which numbers in float32 would widen.

    Args:
      make: returns a transformation, which may reshape, transpose and contract.
      numbers: first argument of ``make``; may be traced.
      rest: its other arguments.
    """

    def whole(numbers: Any, *trees: PyTree) -> tuple[Arrays, PyTree]:
        updates, state = make(numbers, *rest).update(*trees)
        return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), state, trees[1])

    def update(*trees: PyTree) -> tuple[Arrays, PyTree]:
        if jax.sharding.get_abstract_mesh().empty:
            return whole(numbers, *trees)
        _, state, arrays = trees
        places = jax.tree.map(lambda x: jax.typeof(x).sharding, (arrays, state))
        return jax.sharding.auto_axes(whole, out_sharding=places)(numbers, *trees)

    return optax.GradientTransformation(make(numbers, *rest).init, update)
