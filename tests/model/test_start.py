"""At step 0 a network is as ignorant as it should be: its loss is ln V."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gpt3
from model.config import ModelConfig
from model.parameter import Declare
from model.transformer import Transformer
from tests.model import small

SHAPES = {
    "narrow": dict(embed_dim=64, num_layers=4),
    "wide": dict(embed_dim=1024, num_layers=1),
    "deep": dict(embed_dim=64, num_layers=24),
    "wide, tied": dict(embed_dim=1024, num_layers=1, tie_embeddings=True),
    "tied, learned positions": dict(
        embed_dim=128, tie_embeddings=True, positions="learned", norm="layernorm", biases=True
    ),
    "attention only": dict(embed_dim=256, mlp="none"),
    "attention only, tied": dict(embed_dim=256, mlp="none", tie_embeddings=True),
    "attention only, tied, wide": dict(
        embed_dim=1024, num_layers=1, mlp="none", tie_embeddings=True
    ),
    "full value map": dict(embed_dim=64, value_map="full"),
    "one layer, swiglu, grouped": dict(embed_dim=64, num_layers=1, mlp="swiglu", num_kv_heads=1),
}


def shape(vocab_size, **changes):
    width = changes["embed_dim"]
    sizes = dict(head_dim=16, value_dim=16, mlp_dim=4 * width, num_heads=width // 16)
    sizes["num_kv_heads"] = sizes["num_heads"]
    return small.config(**{**sizes, "vocab_size": vocab_size, "max_length": 64, **changes})


@pytest.mark.parametrize("kind", SHAPES)
def test_loss_is_the_logarithm_of_the_vocabulary(kind):
    config = shape(300, **SHAPES[kind])
    rng = np.random.default_rng(0)
    period = rng.integers(0, 300, (4, 8))
    rows = {
        "random": rng.integers(0, 300, (4, 65)),
        "repeated period": np.tile(period, (1, 9))[:, :65],
        "one token": np.broadcast_to(rng.integers(0, 300, (4, 1)), (4, 65)),
    }

    @jax.jit
    def losses(key, rows):
        model = Transformer(config, key)
        logits = jax.lax.map(lambda row: model(row[:, :-1]), rows)
        at = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.take_along_axis(at, rows[..., 1:, None], axis=-1).mean((1, 2, 3))

    stacked = jnp.asarray(np.stack(list(rows.values())), jnp.int32)
    found = dict(zip(rows, np.asarray(losses(jax.random.key(0), stacked)), strict=True))
    for name, loss in found.items():
        assert loss == pytest.approx(math.log(300), rel=0.02), found
