"""Value maps in other factors, against NumPy's products and singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.surgery import value_maps

D, HEADS, GROUPS, RANK = 7, 6, 2, 4


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


DOWN, UP = drawn(D, GROUPS, RANK), drawn(HEADS, RANK, D, seed=1)


def maps(down, up):
    """The map of each head, one at a time."""
    down, up = np.asarray(down, np.float64), np.asarray(up, np.float64)
    each = len(up) // down.shape[1]
    return np.stack([down[:, h // each] @ up[h] for h in range(len(up))])


def best(full, groups, rank):
    """The best maps whose factors a group shares on the left, and their relative error."""
    found, lost = [], 0.0
    for group in np.split(np.asarray(full, np.float64), groups):
        u, s, vt = np.linalg.svd(np.concatenate(list(group), axis=1), full_matrices=False)
        kept = (u[:, :rank] * s[:rank]) @ vt[:rank]
        found += np.split(kept, len(group), axis=1)
        lost += np.sum(s[rank:] ** 2)
    return np.stack(found), np.sqrt(lost / np.sum(np.square(full, dtype=np.float64)))


def test_a_full_map_is_the_product_of_its_factors():
    np.testing.assert_allclose(value_maps.full_map(DOWN, UP), maps(DOWN, UP), rtol=0, atol=1e-5)
    bias = drawn(GROUPS, RANK, seed=2)
    expected = sum(bias[h // (HEADS // GROUPS)] @ UP[h] for h in range(HEADS))
    np.testing.assert_allclose(value_maps.written_bias(bias, UP), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("groups", "rank"), [(1, 3), (2, 1), (2, 4), (6, 9)])
def test_factors_of_full_maps_are_the_best_of_their_rank(groups, rank):
    full = jnp.asarray(maps(DOWN, UP), jnp.float32)
    fresh = drawn(D, groups, rank, seed=3)
    down, up, lost, whole = jax.jit(value_maps.factors)(full, fresh)
    assert (down.shape, up.shape) == ((D, groups, rank), (HEADS, rank, D))
    expected, error = best(full, groups, rank)
    np.testing.assert_allclose(maps(down, up), expected, rtol=0, atol=3e-5)
    assert float(lost / whole) ** 0.5 == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_less_rank_is_the_best_of_it_without_the_maps(rank):
    down, up, lost, whole = jax.jit(value_maps.narrowed)(DOWN, UP, drawn(D, GROUPS, rank))
    expected, error = best(maps(DOWN, UP), GROUPS, rank)
    np.testing.assert_allclose(maps(down, up), expected, rtol=0, atol=3e-5)
    assert float(lost / whole) ** 0.5 == pytest.approx(error, rel=1e-4)


def test_more_rank_has_the_same_maps_and_can_be_learned():
    fresh = drawn(D, GROUPS, 6, seed=3)
    down, up = value_maps.widened(DOWN, UP, fresh)
    np.testing.assert_array_equal(down, np.concatenate([DOWN, fresh[..., 4:]], 2))
    np.testing.assert_array_equal(up[:, :4], UP)
    assert not np.any(up[:, 4:])


def test_directions_that_no_map_uses_write_nothing_and_can_be_learned():
    full = jnp.asarray(maps(DOWN, UP), jnp.float32)  # of rank 4
    down, up, *_ = jax.jit(value_maps.factors)(full, drawn(D, HEADS, 6))
    assert np.abs(up[:, 4:]).max() < 1e-3
    np.testing.assert_allclose(np.linalg.norm(down, axis=0)[:, 4:], 1, rtol=1e-3)
