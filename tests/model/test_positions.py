"""Rotary positions: the angles, the norm they keep, and distances alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.positions import rotate
from tests.model import reference

RNG = np.random.default_rng(0)


def turned(x, positions, base=10_000.0):
    return np.asarray(rotate(jnp.asarray(x), jnp.asarray(positions), base))


def test_by_hand():
    """Four coordinates make two pairs, rotated by 1 and by 1/100 radian a position."""
    x = np.array([[[[1.0, 1.0, 0.0, 0.0]]]], np.float32)
    cos, sin = np.cos([1.0, 0.01]), np.sin([1.0, 0.01])
    np.testing.assert_allclose(turned(x, [[1]])[0, 0, 0], [*cos, *sin], rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", [10.0, 10_000.0])
def test_rotate_equals_complex_products(base):
    x = RNG.standard_normal((2, 3, 4, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3], [5, 0, 1, 40]], np.int32)
    found = turned(x, positions, base)
    for b, h, t in np.ndindex(2, 3, 4):
        expected = reference.turn(x[b, h, t].astype(np.float64), positions[b, t], base)
        np.testing.assert_allclose(found[b, h, t], expected, rtol=0, atol=1e-5)


def test_scores_depend_on_distances_alone():
    q, k = RNG.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    scores = [
        float(np.sum(turned(q, [[9 + shift]]) * turned(k, [[4 + shift]]))) for shift in (0, 3, 500)
    ]
    np.testing.assert_allclose(scores, scores[0], rtol=0, atol=1e-3)
    assert abs(scores[0] - float(np.sum(turned(q, [[9]]) * turned(k, [[5]])))) > 1e-2


def test_angles_are_not_rounded_to_bfloat16():
    x = np.ones((1, 1, 1, 2), np.float32)
    exact = turned(x, [[1001]])
    found = rotate(jnp.asarray(x, jnp.bfloat16), jnp.array([[1001]]), 10_000.0)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=0, atol=0.01)
