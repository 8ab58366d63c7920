"""Forward mode goes through the whole network, and so do Hessian-vector products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from model.backends import splash
from tests.model import small
from train.batches import Batch
from train.loss import cross_entropy

CONFIGS = {
    "in blocks, scanned": dict(attention_backend="blockwise", window=(3,)),
    "in pieces, unrolled, remat": dict(
        attention_backend="pieces", scan_layers=False, remat="block", mlp="swiglu"
    ),
}


@pytest.fixture(params=CONFIGS)
def loss(request, monkeypatch):
    """Returns a loss of all parameters, the parameters, and a direction."""
    monkeypatch.setattr("model.backends.blocks.BLOCK", 4)
    config = small.config(num_layers=1, num_kv_heads=2, **CONFIGS[request.param])
    model, tokens = small.drawn(config), small.tokens(config)
    arrays = tokens, np.roll(tokens, 1, 1), np.ones(tokens.shape, bool)
    batch = Batch(*map(jnp.asarray, arrays))
    weights = jnp.full(tokens.shape, 1 / tokens.size)

    def function(model):
        return cross_entropy(model, batch, weights, jnp.float32(0.1), None, 4)[0]

    rng = np.random.default_rng(3)
    direction = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), model
    )
    return function, model, direction


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_the_derivative_along_a_direction_is_the_gradients(loss):
    function, model, direction = loss
    found = jax.jit(lambda m, d: jax.jvp(function, (m,), (d,))[1])(model, direction)
    gradient = jax.jit(jax.grad(function))(model)
    np.testing.assert_allclose(found, dot(gradient, direction), rtol=1e-4, atol=1e-4)


def test_a_hessian_vector_product_is_a_difference_of_gradients(loss):
    function, model, direction = loss
    gradient = jax.grad(function)
    product = jax.jit(lambda m, d: jax.jvp(gradient, (m,), (d,))[1])(model, direction)
    step = 1e-3
    beside = jax.jit(
        lambda m, d, s: gradient(jax.tree.map(lambda own, along: own + s * along, m, d))
    )
    there, back = (beside(model, direction, s) for s in (step, -step))
    for own, a, b in zip(*map(jax.tree.leaves, (product, there, back)), strict=True):
        expected = (np.asarray(a) - np.asarray(b)) / (2 * step)
        most = 0.02 * np.abs(expected).max() + 5e-3
        np.testing.assert_allclose(own, expected, rtol=0, atol=most)


def test_a_kernel_that_cannot_says_what_to_set(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)
    config = small.config(num_layers=1, attention_backend="splash")
    model, tokens = small.drawn(config), jnp.asarray(small.tokens(config))
    with pytest.raises(UserError, match="model.attention_backend = 'splash' .* set 'blockwise'"):
        jax.jit(lambda m: jax.jvp(lambda m: m(tokens).sum(), (m,), (m,)))(model)
