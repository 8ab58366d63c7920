"""Norms of vectors: LayerNorm, RMSNorm, and in what type the means are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.axes import ShardingRules
from model.compute import Compute
from model.norms import Norm
from model.parameter import Declare
from tests.model import reference, small


def make(width=6, **changes):
    config = small.config(**changes)
    declare = Declare(jax.random.key(0), ShardingRules(), "float32")
    return Norm(config, declare, Compute.of(config, ShardingRules()), width)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (2, 4, 3, 6)])
def test_norm_equals_the_reference(kind, shape):
    norm = make(norm=kind, biases=True, norm_epsilon=0.1)
    rng = np.random.default_rng(0)
    w = {"gain": rng.standard_normal(6)}
    norm.gain[...] = jnp.asarray(w["gain"], jnp.float32)
    if kind == "layernorm":
        w["bias"] = rng.standard_normal(6)
        norm.bias[...] = jnp.asarray(w["bias"], jnp.float32)
    else:
        assert norm.bias is None
    x = rng.standard_normal(shape).astype(np.float32) + 2
    expected = np.apply_along_axis(lambda v: reference.norm(kind, 0.1, v, w), -1, x)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=0, atol=2e-6)


def test_means_are_taken_in_the_accumulation_dtype():
    norm = make(width=512, norm="rmsnorm")
    # The square of 300 overflows in float16.
    found = norm(jnp.full((512,), 300, jnp.float16))
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found, 1)
