"""Wrappers of optax transformations, for parameters that go by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from configs import objects

Arrays = dict[str, Array]


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


def apart(layers: dict[str, list[str]], inner: optax.GradientTransformation, field: str) -> Any:
    """Transforms the layers of stacks as parameters of their own; norms may then span all.

    Args:
      layers: the names of the layers of each stack, on its first axis.
      inner: what transforms them.
      field: of the config, that an error names.
    """

    def cut(arrays: Arrays) -> Arrays:
        alone = {name: array for name, array in arrays.items() if name not in layers}
        stacks = [(n, jnp.unstack(arrays[n])) for n in arrays if n in layers]
        return alone | {n: one for s, cut in stacks for n, one in zip(layers[s], cut, strict=True)}

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        slopes = cut(updates)
        changed, state = inner.update(slopes, state, cut(arrays))
        for name, slope in slopes.items():
            objects.check_result(
                changed.get(name), slope.shape, f"{field} gives {name}", f"return {slope.shape}"
            )
        stacks = {n: jnp.stack([changed[one] for one in layers[n]]) for n in layers}
        return {name: stacks.get(name, changed.get(name)) for name in updates}, state

    return optax.GradientTransformation(lambda arrays: inner.init(cut(arrays)), update)


def across_shards(
    chosen: list[str], make: Callable[..., Any], numbers: Any, declared: Any
) -> optax.GradientTransformation:
    """Transforms the updates of the chosen parameters, whole, and passes the others on.

    The compiler places what is made between their shards. The state keeps the dtypes that it
    began with, which numbers in float32 would widen.

    Args:
      chosen: names of parameters.
      make: returns a transformation, which may reshape, transpose and contract.
      numbers, declared: arguments of ``make``; the numbers may be traced.
    """

    def some(arrays: Arrays) -> Arrays:
        return {name: arrays[name] for name in chosen}

    def whole(numbers: Any, *trees: PyTree) -> tuple[Arrays, PyTree]:
        updates, state = make(numbers, declared).update(*trees)
        return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), state, trees[1])

    def update(updates: Arrays, state: PyTree, arrays: Arrays) -> tuple[Arrays, PyTree]:
        trees = (some(updates), state, some(arrays))
        transform = whole
        if not jax.sharding.get_abstract_mesh().empty:
            places = jax.tree.map(lambda x: jax.typeof(x).sharding, (trees[2], state))
            transform = jax.sharding.auto_axes(whole, out_sharding=places)
        changed, state = transform(numbers, *trees)
        return updates | changed, state

    return optax.GradientTransformation(
        lambda arrays: make(numbers, declared).init(some(arrays)), update
    )
