"""The MLP against the reference, one activation at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.errors import UserError
from model.axes import TOKENS, ShardingRules
from model.tally import tally
from model.transformer import Transformer
from tests.model import reference, small


@pytest.mark.parametrize("kind", ["gelu_tanh", "gelu_erf", "swiglu"])
def test_mlp_equals_the_reference(kind):
    config = small.config(mlp=kind, biases=True)
    model = small.drawn(config)
    mlp = jax.tree.map(lambda leaf: leaf[1], model.blocks[0].mlp)
    x = 2 * np.random.default_rng(0).standard_normal((2, 3, 12)).astype(np.float32)
    w = reference.within(reference.layer(reference.weights(model), config, 1), "mlp")
    found = np.asarray(mlp(jnp.asarray(x)))
    for b in range(2):
        np.testing.assert_allclose(
            found[b], reference.mlp(config, w, x[b].astype(np.float64)), rtol=0, atol=1e-5
        )


def test_the_two_gelus_differ_by_a_thousandth():
    x = np.linspace(-4, 4, 200)
    gap = reference.activation("gelu_tanh", x) - reference.activation("gelu_erf", x)
    assert 1e-4 < np.abs(gap).max() < 1e-3


def test_only_swiglu_has_a_gate():
    gates = {
        kind: small.abstract(small.config(mlp=kind)).blocks[0].mlp.gate is not None
        for kind in ("gelu_tanh", "gelu_erf", "swiglu")
    }
    assert gates == {"gelu_tanh": False, "gelu_erf": False, "swiglu": True}


MIXTURE = dict(mlp="tests.model.own_mlps:Mixture", num_layers=1, mlp_dim=8, embed_dim=16)


def test_an_mlp_of_ones_own_is_computed():
    config = small.config(**MIXTURE)
    mlp = jax.tree.map(lambda leaf: leaf[0], small.drawn(config).blocks[0].mlp)
    x = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32)
    found = np.asarray(mlp(jnp.asarray(x)))[0]
    up, down, router = (np.asarray(p[...], np.float64) for p in (mlp.up, mlp.down, mlp.router))
    for row, update in zip(x[0].astype(np.float64), found, strict=True):
        routes = row @ router
        first, second = np.argsort(routes)[::-1][:2]
        weights = np.exp([routes[first], routes[second]])
        expected = sum(
            w / weights.sum() * reference.activation("gelu_tanh", row @ up[e]) @ down[e]
            for w, e in zip(weights, (first, second), strict=True)
        )
        np.testing.assert_allclose(update, expected, rtol=0, atol=1e-5)


def test_an_mlp_of_ones_own_is_sharded_and_counted():
    config = small.config(**MIXTURE, num_heads=4)
    tokens = small.tokens(config, batch=4, length=6)

    @jax.jit
    def run(key, tokens):
        return jax.grad(small.cross_entropy)(Transformer(config, key), tokens, tokens)

    def on(sizes):
        with jax.set_mesh(small.mesh(sizes)):
            split = jax.device_put(tokens, ShardingRules().spec(TOKENS, tokens.shape))
            return run(jax.random.key(1), split)

    many, one = on(dict(fsdp=2, heads=4)), on({})
    up = many.blocks[0].mlp.up[...]
    assert up.sharding.shard_shape(up.shape) == (1, 4, 8, 2)
    for found, expected in zip(*map(jax.tree.leaves, (many, one)), strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-5)
    assert tally(config, 7).mlp_block == 4 * 2 * 16 * 8 + 16 * 4


class Silent(nnx.Module):
    """Has nothing to call."""

    def __init__(self, config, declare, compute):
        """Declares nothing."""


class Asking(Silent):
    """Asks for more than the residual."""

    def __call__(self, x, y):
        return x + y


def test_an_mlp_that_is_none_is_refused():
    for name, words in (
        ("gelu", "model.mlp cannot be 'gelu'"),
        ("json:dumps", "model.mlp = 'json:dumps' is no nnx.Module"),
        ("flax.nnx:Linear", "model.mlp = 'flax.nnx:Linear' is called with 3 arguments .too many"),
        (f"{__name__}:Silent", "model.mlp = .*:Silent' has no __call__; write it"),
        (f"{__name__}:Asking", "model.mlp = .*:Asking': __call__ is called with 1 arguments"),
        ("no.such:Class", "model.mlp = 'no.such:Class' cannot be imported"),
    ):
        with pytest.raises(UserError, match=words):
            small.abstract(small.config(mlp=name))
