"""A gradient of one's own is taken in reverse, and the function's own derivative forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.gradients import with_gradient


def plain(x, w, scale):
    return jnp.sin(x @ w["weight"]) * scale


def forward(x, w, scale):
    read = x @ w["weight"]
    return jnp.sin(read) * scale, read


def backward(arguments, read, cotangent):
    x, w, scale = arguments
    back = cotangent * jnp.cos(read) * scale
    whole = dict(weight=x.T @ back, places=jnp.zeros_like(w["places"]))
    return back @ w["weight"].T, whole, None


own = with_gradient(plain, forward, backward)
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
WEIGHTS = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
DIRECTION = np.random.default_rng(1).standard_normal((2, 4, 4)).astype(np.float32)


def network(function, remat):
    """Returns the loss of a scanned network whose argument is a stack of weights."""

    def loss(weights):
        def layer(x, weight):
            w = dict(weight=weight, places=jnp.arange(2))
            return function(x, w, 2), None

        layer = jax.checkpoint(layer) if remat else layer
        return jnp.square(jax.lax.scan(layer, X, weights)[0]).sum()

    return loss


DERIVATIVES = {
    "reverse": lambda f: jax.grad(f)(WEIGHTS),
    "forward": lambda f: jax.jvp(f, (WEIGHTS,), (DIRECTION,))[1],
    "forward over reverse": lambda f: jax.jvp(jax.grad(f), (WEIGHTS,), (DIRECTION,))[1],
    "reverse over reverse": lambda f: jax.grad(lambda w: (jax.grad(f)(w) * DIRECTION).sum())(
        WEIGHTS
    ),
    "mapped": lambda f: jax.vmap(jax.grad(f))(jnp.stack([WEIGHTS, DIRECTION])),
    "mapped, forward over reverse": lambda f: jax.vmap(
        lambda w: jax.jvp(jax.grad(f), (w,), (DIRECTION,))[1]
    )(jnp.stack([WEIGHTS, DIRECTION])),
}


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives_are_those_of_the_plain_function(kind, remat):
    derivative = DERIVATIVES[kind]
    found = jax.jit(lambda: derivative(network(own, remat)))()
    expected = derivative(network(plain, False))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_reverse_mode_takes_the_given_gradient():
    other = with_gradient(jnp.sin, lambda x: (jnp.sin(x), None), lambda given, _, dy: (7 * dy,))
    assert jax.grad(other)(1.0) == 7
    assert jax.jvp(other, (1.0,), (1.0,))[1] == pytest.approx(np.cos(1.0))


def test_a_derivative_may_be_given_too():
    def refused(primals, tangents):
        raise ValueError("no forward mode")

    other = with_gradient(
        jnp.sin, lambda x: (jnp.sin(x), None), lambda given, _, dy: (dy,), refused
    )
    assert jax.grad(other)(1.0) == 1
    with pytest.raises(ValueError, match="no forward mode"):
        jax.jvp(other, (1.0,), (1.0,))
