"""The tally against hand counts and against what a step really holds."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import base, gpt3, induction, toy
from configs.errors import UserError
from model.attention import Multihead
from model.config import ModelConfig
from model.parameter import declarations, named_arrays
from model.pattern import Pattern
from model.tally import render, tally
from model.transformer import Transformer
from tests.train.updates import optimizer_of
from train.optimizer import NAMES

# Width 12288, 96 heads of 128, 96 layers, MLP 49152, 50257 tokens: each product by hand.
GPT3 = {
    "head": 6_291_456,
    "full_value_map": 150_994_944,
    "attention_block": 603_979_776,
    "attention": 57_982_058_496,
    "matrices": 175_181_291_520,
}


class Nameless(Multihead):
    """A variant whose score reads what its pattern does not have."""

    def pattern(self, heads, mask):
        """Returns the pattern."""
        return Pattern(score=lambda logit, query, key, head: logit - key.distance)


def gpt3_config() -> ModelConfig:
    config = gpt3.get_config("175b")
    return ModelConfig.from_config(config.model, 50257, config.length)


def model_config(**fields: object) -> ModelConfig:
    section = base.get_config().model
    section.update(fields)
    return ModelConfig.from_config(section, 65, 32)


def test_gpt3_has_the_parameters_of_the_lecture() -> None:
    found = tally(gpt3_config(), 2048)
    assert {name: getattr(found, name) for name in GPT3} == GPT3
    parts = dict.fromkeys(("query", "key", "value_down", "value_up"), 1_572_864)
    assert found.head_parts == parts


def test_the_configured_gpt3_adds_positions_norms_and_biases() -> None:
    found = tally(gpt3_config(), 2048)
    tied = GPT3["matrices"] - 50257 * 12288
    positions = 2048 * 12288
    norms = (2 * 96 + 1) * 2 * 12288
    biases = 96 * (4 * 12288 + 49152 + 12288)
    assert found.parameters == tied + positions + norms + biases
    assert found.padding == (50304 - 50257) * 12288


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(num_heads=8, num_kv_heads=2, value_dim=12, biases=True, tie_embeddings=True),
        dict(value_map="full", mlp="none", positions="learned"),
        dict(mlp="swiglu", query_key_norm=True, parallel_blocks=True, window=(None, 8)),
    ],
)
def test_parameters_and_bytes_are_those_of_the_real_arrays(fields: dict) -> None:
    config = model_config(**fields)
    model = Transformer(config, jax.random.key(0))
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(model))
    found = tally(config, 32)
    assert found.parameter_bytes == held
    assert found.parameters + found.padding == held // 4


def test_a_grouped_head_counts_its_group_once() -> None:
    config = model_config(num_heads=8, num_kv_heads=2, head_dim=16, value_dim=12)
    found = tally(config, 32)
    assert found.head_parts == dict(
        query=128 * 16, key=128 * 16, value_down=128 * 12, value_up=12 * 128
    )
    assert found.attention_block == 128 * (8 * 16 + 2 * 16 + 2 * 12) + 8 * 12 * 128


def test_operations_count_each_seen_key() -> None:
    config = model_config(num_layers=2, window=(None, 3), num_heads=2, head_dim=8, value_dim=6)
    length = 10
    seen = np.tril(np.ones((length, length)))
    near = seen * (np.arange(length)[:, None] - np.arange(length) < 3)
    pairs = (seen.sum() + near.sum()) / length
    found = tally(config, length)
    assert found.attention_pattern_flops == round(2 * 2 * (8 + 6) * pairs)
    matrices = 2 * 128 * (2 * 8 + 2 * 8 + 2 * 6 + 2 * 6 + 2 * 512)
    assert found.forward_flops == 2 * (matrices + 65 * 128) + found.attention_pattern_flops
    assert found.training_flops == 3 * found.forward_flops


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_bytes_are_those_of_the_state(name: str) -> None:
    config = model_config(embed_dim=256, num_layers=2)
    model = jax.eval_shape(lambda key: Transformer(config, key), jax.random.key(0))
    optimizer = optimizer_of(name, declarations(model))
    state = jax.eval_shape(optimizer.init, named_arrays(model))
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(state))
    # Counters and placeholders of the state are a few numbers a parameter.
    assert held == pytest.approx(tally(config, 32, name).optimizer_bytes, rel=2e-3)


def test_what_is_kept_beside_the_moments_is_counted() -> None:
    wide, narrow = model_config(), model_config(param_dtype="bfloat16")
    found = [tally(narrow, 32, "adamw", *kept).optimizer_bytes for kept in ((False, True), (True,))]
    parameters = tally(wide, 32).parameters + tally(wide, 32).padding
    # Two moments and the weights in float32; two moments in bfloat16 and the average in float32.
    assert found == [(2 + 1) * 4 * parameters, (2 * 2 + 4) * parameters]
    assert tally(wide, 32, "adamw", master_weights=True) == tally(wide, 32)
    own = tally(wide, 32, "some.module:function")
    assert own.optimizer_bytes is None
    printed = Console(file=io.StringIO(), width=110)
    printed.print(render(own, "own"))
    assert "its function's" in printed.file.getvalue()


def test_cache_bytes_are_those_of_an_empty_cache() -> None:
    config = model_config(num_heads=8, num_kv_heads=2, value_dim=12, window=(None, 8))
    cache = Transformer(config, jax.random.key(0)).empty_cache(3, 20)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    assert held == 3 * 20 * tally(config, 32).cache_bytes_per_token


def test_a_variant_with_a_parameter_of_its_own_is_counted() -> None:
    plain = tally(model_config(), 32)
    gated = tally(model_config(attention="model.variants.gated:Gated"), 32)
    assert gated.head - plain.head == 128
    assert gated.parameters - plain.parameters == 4 * 4 * 128


def test_a_variant_with_a_mistake_is_refused_before_it_is_counted() -> None:
    with pytest.raises(UserError, match="Pattern.score of model.attention .* 'distance'"):
        tally(model_config(attention="tests.model.test_tally:Nameless"), 32)


def test_the_command_prints_and_writes_the_same_figures(tmp_path) -> None:
    file = tmp_path / "tally.json"
    command = [sys.executable, "-m", "model.tally", "--config=configs/gpt3.py:175b"]
    run = subprocess.run([*command, f"--json={file}"], capture_output=True, text=True, check=True)
    written = json.loads(file.read_text())
    for name, figure in GPT3.items():
        assert written[name] == figure
        assert f"{figure:,}" in run.stdout


@pytest.mark.parametrize("config", [toy.get_config(), induction.get_config()])
def test_small_configs_have_a_tally(config) -> None:
    shape = ModelConfig.from_config(config.model, 64, config.length)
    assert tally(shape, config.length).parameters > 0
