"""At step 0 a network is as ignorant as it should be: its loss is ln V."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gpt2, gpt3
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
LARGE = {f"gpt3:{row}": gpt3.get_config(row) for row in gpt3.ROWS} | {
    f"gpt2:{size}": gpt2.get_config(size) for size in gpt2.SIZES
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
        # A tied network expects the token that it reads, by 0.04 over the residual's size.
        allowed = 0.05 if config.tie_embeddings and name == "one token" else 0.02
        assert loss == pytest.approx(math.log(300), rel=allowed), found


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("tied", [True, False])
def test_loss_of_gpts_by_formula(monkeypatch, name, tied):
    """Normed vectors have size sqrt(D), so a logit's variance is D times the table's."""
    tables = {}
    table = Declare.table

    def noted(self, name, shape, axes, stddev, kind="embedding"):
        tables[name] = stddev
        return table(self, name, shape, axes, stddev, kind)

    monkeypatch.setattr(Declare, "table", noted)
    whole = LARGE[name]
    fields = whole.model.copy_and_resolve_references()
    fields.tie_embeddings = tied
    config = ModelConfig.from_config(fields, vocab_size=50257, length=whole.length)
    jax.eval_shape(lambda: Transformer(config, jax.random.key(0)))
    stddev = tables["embedding" if tied else "unembedding"]
    variance = config.embed_dim * stddev**2
    assert 0 < variance / 2 < 0.02 * math.log(50257)
    # The residual is at least the embedding and the positions; blocks only add to it.
    size = math.hypot(tables["embedding"], tables["positions"])
    own = config.embed_dim * tables["embedding"] ** 2 / size if tied else 0.0
    loss = math.log(50256 * math.exp(variance / 2) + math.exp(own))
    assert loss == pytest.approx(math.log(50257), rel=0.02)
