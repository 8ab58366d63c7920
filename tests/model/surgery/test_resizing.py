"""Rows and key/value heads, against NumPy and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.surgery.resizing import first_rows, is_repeated, regrouped, rows, shares


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_rows_go_by_their_numbers_and_the_others_are_fresh():
    saved, fresh = drawn(4, 3), drawn(5, 3, seed=1)
    found = rows(saved, fresh, np.array([2, -1, 0, -1, 2]))
    np.testing.assert_array_equal(
        found, np.stack([saved[2], fresh[1], saved[0], fresh[3], saved[2]])
    )


@pytest.mark.parametrize(("before", "after"), [(2, 5), (5, 2), (3, 3)])
def test_a_table_of_positions_keeps_its_first_rows(before, after):
    saved, fresh = drawn(before, 3), drawn(after, 3, seed=1)
    both = min(before, after)
    expected = np.concatenate([saved[:both], fresh[both:]])
    np.testing.assert_array_equal(first_rows(saved, fresh), expected)


@pytest.mark.parametrize(
    ("heads", "before", "after"), [(12, 4, 2), (12, 12, 1), (12, 2, 4), (12, 4, 6), (12, 6, 4)]
)
def test_a_new_head_is_the_mean_of_what_its_query_heads_read(heads, before, after):
    saved = drawn(before, 3, 2)
    reads = [
        np.asarray(saved)[h // (heads // before)] for h in range(heads)
    ]  # each query head by itself
    each = heads // after
    expected = [np.mean(reads[g * each : (g + 1) * each], axis=0) for g in range(after)]
    made, lost, whole = regrouped(saved, after)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-7)
    now = [expected[h // each] for h in range(heads)]
    error = np.sum(np.square(np.subtract(reads, now))) / np.sum(np.square(reads))
    assert float(lost) / float(whole) == pytest.approx(error, abs=1e-6)
    np.testing.assert_allclose(shares(before, after).sum(1), 1)


def test_more_heads_that_repeat_old_ones_do_so_to_the_bit():
    saved = drawn(2, 3)
    assert is_repeated(2, 6)
    assert not is_repeated(4, 6)
    np.testing.assert_array_equal(regrouped(saved, 6)[0], np.asarray(saved)[[0, 0, 0, 1, 1, 1]])
