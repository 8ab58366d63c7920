"""Operations of attention for one query and one key, counted in its program."""

import math
from typing import Any

import jax
from jaxtyping import Array

from model import layers, masks
from model.attention import Multihead
from model.block import Block
from model.compute import Compute
from model.heads import Heads

# Tokens of the program that is counted.
LENGTH = 16


def pair_operations(stack: Block, compute: Compute) -> float:
    """Returns floating-point operations of a stack's patterns for one query and one key.

    They are its products, of all layers and heads, and what the hooks of a variant do. The softmax
    is not counted, as nowhere in the tally. The stack is abstract or real, and its backend holds
    whole patterns.
    """
    mask = masks.causal(LENGTH, None, compute)
    hooks = []

    def attend(block: Block, heads: Heads) -> Array:
        mixed = block.attention.attend(heads, mask)  # which checks the hooks
        if isinstance(block.attention, Multihead):
            hooks.append(block.attention.pattern(heads, mask).operations())
        return mixed

    heads = layers.projected(stack, 1, LENGTH, compute)
    program = jax.make_jaxpr(jax.vmap(attend))(stack, heads)
    number, _, per_layer = heads.query.shape[:3]
    return _products(program.jaxpr) / LENGTH**2 + sum(hooks) * number * per_layer


def _products(jaxpr: Any) -> int:
    """Returns the operations of all matrix products in a program."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            count += 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in summed)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                count += _products(inner)
    return count
