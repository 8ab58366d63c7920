"""The eight rows against the paper's table 2.1 and against totals worked out by hand."""

import pytest

from configs import gpt3
from configs.errors import UserError
from configs.resolved import check

# row: layers, width, heads, head width, tokens a batch in the paper, learning rate
PAPER = {
    "125m": (12, 768, 12, 64, 0.5e6, 6.0e-4),
    "350m": (24, 1024, 16, 64, 0.5e6, 3.0e-4),
    "760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "1.3b": (24, 2048, 24, 128, 1e6, 2.0e-4),
    "2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4),
    "6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4),
    "13b": (40, 5140, 40, 128, 2e6, 1.0e-4),
    "175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4),
}

# Millions of parameters: matrices of the blocks, then token and position embeddings,
# each worked out by hand from the table (13b with width 5120).
MILLIONS = {
    "125m": (84.93, 40.17),
    "350m": (301.99, 53.56),
    "760m": (679.48, 80.34),
    "1.3b": (1409.29, 107.12),
    "2.7b": (2516.58, 133.90),
    "6.7b": (6442.45, 214.24),
    "13b": (12582.91, 267.80),
    "175b": (173946.18, 642.72),
}

NAMED = {
    "125m": 125,
    "350m": 350,
    "760m": 760,
    "1.3b": 1300,
    "2.7b": 2700,
    "6.7b": 6700,
    "13b": 13000,
    "175b": 175000,
}


@pytest.mark.parametrize("row", PAPER)
def test_row_is_the_papers(row: str):
    layers, width, heads, head_width, batch_tokens, rate = PAPER[row]
    config = gpt3.get_config(row)
    check(config)
    model = config.model
    assert (model.num_layers, model.num_heads, model.head_dim) == (layers, heads, head_width)
    assert model.embed_dim == (5120 if row == "13b" else width)
    assert model.mlp_dim == 4 * model.embed_dim
    assert config.optim.learning_rate == rate
    assert config.batch_size * config.length == pytest.approx(batch_tokens, rel=0.05)
    assert config.steps * config.batch_size * config.length == pytest.approx(300e9, rel=1e-5)
    warmup_tokens = config.optim.warmup_steps * config.batch_size * config.length
    assert warmup_tokens == pytest.approx(375e6, rel=0.01)
    assert model.window == (None, 256)
    assert (model.biases, model.tie_embeddings, model.positions) == (True, True, "learned")


@pytest.mark.parametrize("row", PAPER)
def test_parameters_are_near_the_name(row: str):
    model = gpt3.get_config(row).model
    attention = 4 * model.embed_dim * model.num_heads * model.head_dim
    mlp = 2 * model.embed_dim * model.mlp_dim
    blocks = model.num_layers * (attention + mlp) / 1e6
    embeddings = (model.vocab_size + 2048) * model.embed_dim / 1e6
    assert (blocks, embeddings) == pytest.approx(MILLIONS[row], rel=1e-4)
    # 24 heads of 128 are wider than 2048: the table's row is larger than its name.
    assert blocks + embeddings == pytest.approx(NAMED[row], rel=0.17 if row == "1.3b" else 0.02)


def test_unknown_row_names_the_rows():
    with pytest.raises(UserError, match=r"'1\.3B' .*125m, 350m, .*175b"):
        gpt3.get_config("1.3B")
