"""Functions with a reverse-mode gradient of their own, which forward mode differentiates too.

``jax.custom_vjp`` refuses ``jax.jvp``, and with it Hessian-vector products forward over reverse.
Here the tangents of a result are a primitive that is linear in those of the arguments: evaluated
it is the function's own derivative, transposed it is the gradient that was given.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def with_gradient(
    function: Callable[..., PyTree],
    forward: Callable[..., tuple[PyTree, PyTree]],
    backward: Callable[[tuple, PyTree, PyTree], tuple],
    derivative: Callable[[tuple, tuple], PyTree] | None = None,
) -> Callable[..., PyTree]:
    """Returns ``function`` with ``backward`` as its reverse-mode derivative.

    Args:
      function: of arrays, or pytrees of them.
      forward: of the same; returns the same, and what ``backward`` needs besides the arguments.
      backward: of the arguments, what it needs and the cotangents of the result; returns those of
        each argument, or None for an argument that has none.
      derivative: of the arguments and their tangents; returns those of the result. Forward mode
        alone evaluates it. When None, it is the automatic derivative of ``function``.
    """

    @jax.custom_jvp
    def differentiable(*arguments: PyTree) -> PyTree:
        return function(*arguments)

    @differentiable.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
        result, needed = forward(*primals)
        leaves, structure = jax.tree.flatten(primals)
        outputs, of_result = jax.tree.flatten(result)
        # Integers have no tangents.
        moves = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
        still = [np.zeros(jnp.shape(leaf), jax.dtypes.float0) for leaf in leaves]

        def evaluate(kept: tuple, moving: list) -> list:
            tangent = iter(moving)
            whole = [next(tangent) if m else zero for m, zero in zip(moves, still, strict=True)]
            tangents = jax.tree.unflatten(structure, whole)
            if derivative is not None:
                return jax.tree.leaves(derivative(kept[0], tangents))
            return jax.tree.leaves(jax.jvp(function, kept[0], tangents)[1])

        def transpose(kept: tuple, cotangents: list) -> list:
            primals, needed = kept
            slopes = backward(primals, needed, jax.tree.unflatten(of_result, cotangents))
            every = [
                leaf
                for primal, slope in zip(primals, slopes, strict=True)
                for leaf in jax.tree.leaves(
                    jax.tree.map(jnp.zeros_like, primal) if slope is None else slope
                )
            ]
            return [leaf for leaf, m in zip(every, moves, strict=True) if m]

        moving = [t for t, m in zip(jax.tree.leaves(tangents), moves, strict=True) if m]
        types = tuple(jax.typeof(x) for x in outputs)
        moved = _bind((primals, needed), moving, evaluate, transpose, types)
        return result, jax.tree.unflatten(of_result, moved)

    return differentiable


# A function that is linear in its last arguments, with its transpose.
_linear = Primitive("linear")
_linear.multiple_results = True


def _bind(
    kept: PyTree, moving: list, evaluate: Callable, transpose: Callable, types: tuple
) -> list:
    leaves, structure = jax.tree.flatten(kept)
    more = dict(structure=structure, evaluate=evaluate, transpose=transpose, types=types)
    return _linear.bind(*leaves, *moving, **more)


def _evaluate(*arrays: Any, structure: Any, evaluate: Callable, **_: Any) -> list:
    count = structure.num_leaves
    return evaluate(jax.tree.unflatten(structure, arrays[:count]), list(arrays[count:]))


def _transpose(cotangents: list, *arrays: Any, structure: Any, transpose: Any, **_: Any) -> list:
    kept = jax.tree.unflatten(structure, arrays[: structure.num_leaves])
    whole = [ad.instantiate_zeros(c) if isinstance(c, ad.Zero) else c for c in cotangents]
    return [None] * structure.num_leaves + transpose(kept, whole)


def _jvp(primals: tuple, tangents: tuple, **parameters: Any) -> tuple[list, list]:
    evaluate = functools.partial(_evaluate, **parameters)
    return jax.jvp(evaluate, primals, tuple(map(ad.instantiate_zeros, tangents)))


def _batch(
    arrays: tuple, axes: tuple, *, structure: Any, evaluate: Any, transpose: Any, types: tuple
) -> tuple[list, list]:
    """Maps both functions over the arrays that have the axis; each result has it first."""
    count = structure.num_leaves
    size = next(x.shape[a] for x, a in zip(arrays, axes, strict=True) if a is not None)
    first = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(arrays, axes, strict=True)]
    kept = jax.tree.unflatten(structure, first[:count])
    over = jax.tree.unflatten(structure, [None if a is None else 0 for a in axes[:count]]), 0
    moving = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else x
        for x, a in zip(first[count:], axes[count:], strict=True)
    ]
    several = jax.vmap(evaluate, over), jax.vmap(transpose, over)
    made = jax.eval_shape(several[0], kept, moving)
    moved = _bind(kept, moving, *several, tuple(map(jax.typeof, made)))
    return moved, [0] * len(moved)


_linear.def_impl(_evaluate)
_linear.def_abstract_eval(lambda *_, types, **__: types)
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
