"""The MLP against the reference, one activation at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
