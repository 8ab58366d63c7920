"""Sums and logits keep the accumulation dtype when operands are bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from tests.model import small


def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16():
    model = small.drawn(small.config(dtype="bfloat16"))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 7)), jnp.int32)
    logits = np.asarray(jax.jit(model.__call__)(tokens))[..., :11]
    assert logits.dtype == np.float32
    rounded = np.asarray(jnp.asarray(logits).astype(jnp.bfloat16).astype(jnp.float32))
    assert (logits != rounded).mean() > 0.9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotary_base", 0.0),
        ("rotary_base", -5.0),
        ("norm_epsilon", float("nan")),
        ("norm_epsilon", -1.0),
        ("logit_cap", float("nan")),
    ],
)
def test_numbers_that_would_give_nan_are_refused(field, value):
    with pytest.raises(UserError, match=f"model.{field}"):
        small.config(**{field: value})


@pytest.mark.parametrize(
    "name", [":Foo", ".x:Foo", "json:JSONDecoder", "no.such:Thing", "model.norms:Norm"]
)
def test_a_variant_that_is_none_is_refused(name):
    with pytest.raises(UserError, match=r"model.attention = "):
        small.abstract(small.config(attention=name))
