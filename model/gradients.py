"""Functions with a reverse-mode gradient of their own, which forward mode differentiates too.

``jax.custom_vjp`` refuses ``jax.jvp``, and with it Hessian-vector products forward over reverse.
Here the tangents of a result are a primitive that is linear in those of the arguments: evaluated
it is the function's own derivative, transposed it is the gradient that was given.
"""

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

    def automatic(primals: tuple, tangents: tuple) -> PyTree:
        return jax.jvp(function, primals, tangents)[1]

    @jax.custom_jvp
    def differentiable(*arguments: PyTree) -> PyTree:
        return function(*arguments)

    @differentiable.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
        result, needed = forward(*primals)
        leaves, structure = jax.tree.flatten(primals)
        still = {
            i: np.zeros(jnp.shape(leaf), jax.dtypes.float0)
            for i, leaf in enumerate(leaves)
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        }
        outputs, result_structure = jax.tree.flatten(result)

        def evaluate(kept: tuple, moving: list) -> list:
            given = iter(moving)
            whole = [still[i] if i in still else next(given) for i in range(len(leaves))]
            primals, _ = kept
            found = (derivative or automatic)(primals, jax.tree.unflatten(structure, whole))
            return jax.tree.leaves(found)

        def transpose(kept: tuple, cotangents: list) -> list:
            primals, needed = kept
            found = backward(primals, needed, jax.tree.unflatten(result_structure, cotangents))
            each = [
                leaf
                for primal, own in zip(primals, found, strict=True)
                for leaf in jax.tree.leaves(
                    jax.tree.map(jnp.zeros_like, primal) if own is None else own
                )
            ]
            return [leaf for i, leaf in enumerate(each) if i not in still]

        moving = [t for i, t in enumerate(jax.tree.leaves(tangents)) if i not in still]
        found = _bind(
            (primals, needed), moving, evaluate, transpose, [jax.typeof(x) for x in outputs]
        )
        return result, jax.tree.unflatten(result_structure, found)

    return differentiable


_linear = Primitive("linear")
_linear.multiple_results = True


def _bind(kept: PyTree, moving: list, evaluate: Callable, transpose: Callable, types: list) -> list:
    """Binds a function that is linear in ``moving``, with its transpose."""
    leaves, structure = jax.tree.flatten(kept)
    return _linear.bind(
        *leaves,
        *moving,
        structure=structure,
        evaluate=evaluate,
        transpose=transpose,
        types=tuple(types),
    )


def _evaluate(*arrays: Any, structure: Any, evaluate: Callable, **_: Any) -> list:
    count = structure.num_leaves
    return evaluate(jax.tree.unflatten(structure, arrays[:count]), list(arrays[count:]))


def _transpose(
    cotangents: list, *arrays: Any, structure: Any, transpose: Callable, types: tuple, **_: Any
) -> list:
    count = structure.num_leaves
    kept = jax.tree.unflatten(structure, arrays[:count])
    given = [ad.instantiate_zeros(c) if isinstance(c, ad.Zero) else c for c in cotangents]
    return [None] * count + transpose(kept, given)


def _jvp(primals: tuple, tangents: tuple, **parameters: Any) -> tuple[list, list]:
    def whole(*arrays: Any) -> list:
        return _evaluate(*arrays, **parameters)

    return jax.jvp(whole, primals, tuple(map(ad.instantiate_zeros, tangents)))


def _batch(
    arrays: tuple,
    axes: tuple,
    *,
    structure: Any,
    evaluate: Callable,
    transpose: Callable,
    types: tuple,
) -> tuple:
    """Maps both functions over the arrays that have the axis; each result has it first."""
    count = structure.num_leaves
    size = next(x.shape[a] for x, a in zip(arrays, axes, strict=True) if a is not None)
    moved = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(arrays, axes, strict=True)]
    mapped = [None if a is None else 0 for a in axes[:count]]
    moving = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else x
        for x, a in zip(moved[count:], axes[count:], strict=True)
    ]
    kept_axes = jax.tree.unflatten(structure, mapped)
    kept = jax.tree.unflatten(structure, moved[:count])
    over = (kept_axes, 0)
    several = jax.vmap(evaluate, over), jax.vmap(transpose, over)
    out = jax.eval_shape(several[0], kept, moving)
    found = _bind(kept, moving, *several, [jax.typeof(x) for x in out])
    return found, [0] * len(found)


_linear.def_impl(_evaluate)
_linear.def_abstract_eval(lambda *_, types, **__: types)
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
