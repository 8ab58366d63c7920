"""What devices share out, and what each has of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.surgery.spread import spread
from tests.model import small

X = np.random.default_rng(0).standard_normal((4, 16, 8)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((4, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ({}, (4, 16, 8)),
        (dict(fsdp=2, heads=4), (1, 8, 8)),
        (dict(heads=8), (4, 2, 8)),
        (dict(data=2, fsdp=4), (1, 16, 8)),
        (dict(fsdp=3), (4, 16, 8)),  # which divides nothing
    ],
)
def test_results_and_sums_are_those_of_one_device(sizes, share):
    seen = []

    def function(x, y):
        seen.append(x.shape)
        return jnp.einsum("gdr,gre->gde", x, y), jnp.square(x).sum()

    with jax.set_mesh(small.mesh(sizes)):
        compute = jax.jit(lambda x, y: spread(function, "gd_,g__->gd_,+", x, y))
        made, total = compute(*(jax.device_put(a, jax.P()) for a in (X, Y)))
    np.testing.assert_allclose(made, np.einsum("gdr,gre->gde", X, Y), rtol=0, atol=1e-5)
    assert float(total) == pytest.approx(np.sum(np.square(X)), rel=1e-5)
    assert seen[-1] == share


def test_arrays_stay_where_they_lie():
    seen = []

    def function(x):
        seen.append(x.shape)
        return (x,)

    with jax.set_mesh(small.mesh(dict(fsdp=2, heads=4))):
        x = jax.device_put(X, jax.P(None, "fsdp"))
        (made,) = jax.jit(lambda x: spread(function, "ab_->ab_", x))(x)
    assert seen[-1] == (1, 8, 8)
    np.testing.assert_array_equal(made, X)
