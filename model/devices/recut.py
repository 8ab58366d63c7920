"""A layer of an unrolled network, cut from its stack a second time for its gradient.

Cut once, a copy of all layers would be held from the forward pass to the backward.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from model.gradients import with_gradient


def layer(function: Callable, block: PyTree, stack: PyTree, index: int, inputs: tuple) -> PyTree:
    """Returns ``function(block, *inputs)``; arguments as of ``Plain.layer``."""

    def cut(stack: PyTree, number: int | Array) -> PyTree:
        read = jax.lax.dynamic_index_in_dim
        return jax.tree.map(lambda leaf: read(leaf, number, keepdims=False), stack)

    def forward(stack: PyTree, block: PyTree, *inputs: PyTree) -> tuple[PyTree, PyTree]:
        result, pull = jax.vjp(function, cut(stack, index), *inputs)
        kept: Any = pull
        kept.args_res[0] = None
        return result, kept

    def backward(arguments: tuple, pull: Any, cotangents: PyTree) -> tuple:
        # The compiler is not told that this is zero: it would cut all layers before the first.
        zero = (jax.tree.leaves(cotangents)[0].reshape(-1)[0] * 0).astype(jnp.int32)
        pull.args_res[0] = cut(arguments[0], index + zero)
        return None, *pull(cotangents)

    def whole(stack: PyTree, block: PyTree, *inputs: PyTree) -> PyTree:
        return function(cut(stack, index), *inputs)

    # The gradient is that of ``block``: of layers cut at once it is joined, not padded and added.
    return with_gradient(whole, forward, backward)(stack, block, *inputs)
