"""Every mistake in ``config.model`` stops with one sentence that names the field."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from configs.errors import UserError
from model.config import ModelConfig
from tests.model import small


def complete(**changes):
    """Returns ``configs/base.py`` with other fields, for 300 tokens and sequences of 64."""
    fields = base.get_config().model
    with fields.unlocked():
        fields.update(changes)
    return ModelConfig.from_config(fields, vocab_size=300, length=64)


def test_none_is_completed():
    config = complete()
    assert (config.num_kv_heads, config.head_dim, config.value_dim) == (4, 32, 32)
    assert (config.mlp_dim, config.vocab_size, config.max_length) == (512, 300, 64)
    assert complete(head_dim=6).value_dim == 6
    assert complete(head_dim=6, value_dim=3).value_dim == 3


@pytest.mark.parametrize(("size", "padded"), [(1, 128), (128, 128), (129, 256), (50257, 50304)])
def test_padding_of_the_vocabulary(size, padded):
    assert small.config(vocab_size=size).padded_vocab_size == padded


MISTAKES = [
    (dict(num_haeds=4), r"model.num_haeds is not a field \(did you mean 'num_heads'\?\)"),
    (dict(value_map="fulll"), r"model.value_map cannot be 'fulll' \(did you mean 'full'\?\)"),
    (dict(positions="alibi"), "model.positions cannot be 'alibi'.*learned, rotary, none"),
    (dict(norm="batchnorm"), "model.norm cannot be"),
    (dict(mlp="relu"), "model.mlp cannot be"),
    (dict(remat="all"), "model.remat cannot be"),
    (dict(dtype="float64"), "model.dtype cannot be"),
    (dict(param_dtype="float16"), "model.param_dtype cannot be"),
    (dict(dtype="float16"), "model.dtype cannot be 'float16'.*one of float32, bfloat16"),
    (dict(accumulation_dtype="int8"), "model.accumulation_dtype cannot be"),
    *(
        ({name: 0}, f"model.{name} = 0 must be at least 1")
        for name in (
            *("embed_dim", "num_layers", "num_kv_heads", "head_dim", "value_dim", "mlp_dim"),
            *("num_heads", "max_length"),
        )
    ),
    (dict(num_kv_heads=3), "model.num_kv_heads = 3 does not divide model.num_heads = 4"),
    (dict(num_heads=5), "model.num_heads = 5 does not divide model.embed_dim = 128"),
    (dict(head_dim=5), "model.head_dim = 5 is odd and rotary"),
    (dict(window=()), r"model.window = \(\) must hold"),
    (dict(window=(0,)), r"model.window = \(0,\) must hold"),
    (dict(window=(99999999999999999999,)), r"model.window = \(9+,\) must hold.*below 2\*\*31"),
    (dict(mlp_dim=2**31), r"model.mlp_dim = \d+ must be at least 1 and below 2\*\*31"),
    (dict(window=(None, None, 8)), "model.window has 3 entries.*model.num_layers = 4"),
    (dict(dropout=1.0), "model.dropout = 1.0"),
    (dict(dropout=-0.1), "model.dropout = -0.1"),
    (dict(logit_cap=0.0), "model.logit_cap = 0.0 must be positive"),
    (dict(vocab_size=299), "model.vocab_size = 299 is less than the tokenizer's 300"),
    (dict(max_length=63), "length = 64 is longer than model.max_length = 63"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=lambda x: str(x)[:40])
def test_a_mistake_names_its_field(changes, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        complete(**changes)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_an_odd_head_without_rotary_positions_is_allowed():
    assert complete(head_dim=5, positions="learned").head_dim == 5


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    half=st.integers(1, 4),
    value_dim=st.integers(1, 7),
    width=st.integers(1, 17),
    periods=st.integers(1, 2),
    window=st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=3),
    choices=st.fixed_dictionaries(
        dict(
            value_map=st.sampled_from(["factored", "full"]),
            positions=st.sampled_from(["learned", "rotary", "none"]),
            norm=st.sampled_from(["layernorm", "rmsnorm"]),
            mlp=st.sampled_from(["gelu_tanh", "gelu_erf", "swiglu", "none"]),
            remat=st.sampled_from(["none", "block", "offload", "matmuls"]),
            dtype=st.sampled_from(["float32", "bfloat16"]),
            query_key_norm=st.booleans(),
            logit_cap=st.none() | st.floats(0.5, 50),
            parallel_blocks=st.booleans(),
            biases=st.booleans(),
            tie_embeddings=st.booleans(),
            scan_layers=st.booleans(),
        )
    ),
)
def test_every_valid_config_has_gradients(
    groups, shared, half, value_dim, width, periods, window, choices
):
    config = small.config(
        embed_dim=width,
        num_layers=periods * len(window),
        num_heads=groups * shared,
        num_kv_heads=groups,
        head_dim=2 * half,
        value_dim=value_dim,
        window=tuple(window),
        **choices,
    )
    model, tokens = small.abstract(config), jax.ShapeDtypeStruct((2, 5), jnp.int32)
    gradients = jax.eval_shape(jax.grad(small.cross_entropy), model, tokens, tokens)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (gradients, model)]
    assert shapes[0] == shapes[1]
    logits = jax.eval_shape(
        lambda m, t: m.decode(t, t, jnp.int32(0), m.empty_cache(2, 8))[0], model, tokens
    )
    assert (logits.shape, logits.dtype) == ((2, 5, 128), jnp.float32)


def test_a_run_without_tokens_is_refused():
    with pytest.raises(UserError, match="length = 0 must be at least 1"):
        ModelConfig.from_config(base.get_config().model, 5, 0)
