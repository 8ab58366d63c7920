"""Rows of repeated random tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from text.repeats import RepeatRows

SOURCE = RepeatRows(vocab_size=20, length=24, periods=(3, 9), seed=5)


def joined(rows):
    """Returns the rows with the last label at the end."""
    return np.concatenate([rows.tokens, rows.labels[:, -1:]], axis=1)


def period_of(row):
    """Returns the least distance at which a row repeats itself."""
    return next(p for p in range(1, len(row)) if (row[p:] == row[:-p]).all())


def test_a_row_repeats_distinct_tokens_with_a_period_in_the_range():
    rows = SOURCE.training(np.arange(300))
    periods = []
    for row in joined(rows):
        periods.append(period_of(row))
        assert len(set(row[: periods[-1]])) == periods[-1]
    assert set(periods) == set(range(3, 10))
    assert rows.counted.all()
    assert rows.positions is None
    assert rows.segments is None
    assert set(joined(rows).flat) == set(range(20))


def test_labels_are_the_next_tokens():
    rows = SOURCE.training(np.arange(50))
    np.testing.assert_array_equal(rows.labels[:, :-1], rows.tokens[:, 1:])


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_row_depends_on_seed_and_number_alone(numbers, seed):
    def source():
        return RepeatRows(20, 24, (3, 9), seed)

    together = source().training(np.array(numbers))
    for row, number in zip(joined(together), numbers, strict=True):
        np.testing.assert_array_equal(joined(source().training(np.array([number])))[0], row)
    other = RepeatRows(20, 24, (3, 9), seed + 1).training(np.arange(8))
    assert (joined(source().training(np.arange(8))) != joined(other)).any()


def test_evaluation_rows_are_none_of_the_training_rows():
    held_out = {row.tobytes() for row in joined(SOURCE.evaluation(np.arange(200)))}
    trained = {row.tobytes() for row in joined(SOURCE.training(np.arange(2000)))}
    # Short periods allow few rows, so that some agree by chance.
    assert len(held_out & trained) < len(held_out) / 10
    assert len(held_out) > 190


def test_every_first_token_and_period_is_equally_likely():
    rows = joined(SOURCE.training(np.arange(4000)))
    first = np.bincount(rows[:, 0], minlength=20)
    assert np.abs(first - 200).max() < 5 * np.sqrt(200)
    periods = np.bincount([period_of(row) for row in rows], minlength=10)[3:]
    assert np.abs(periods - 4000 / 7).max() < 5 * np.sqrt(4000 / 7)


@pytest.mark.parametrize(
    ("vocab", "length", "periods", "sentence"),
    [
        (20, 24, (9, 3), "data.periods"),
        (20, 24, (0, 3), "data.periods"),
        (20, 24, (3,), "data.periods"),
        (8, 24, (3, 9), "model.vocab_size = 8"),
        (20, 8, (3, 9), "length = 8"),
    ],
)
def test_periods_that_do_not_fit_are_refused(vocab, length, periods, sentence):
    with pytest.raises(UserError, match=sentence):
        RepeatRows(vocab, length, periods, 0)
