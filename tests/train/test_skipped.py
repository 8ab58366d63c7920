"""Which batch a step takes when some are left out."""

import itertools

import pytest

from train.skipped import Skipped


@pytest.mark.parametrize(
    "ranges",
    [[], [(0, 0)], [(3, 5)], [(4, 6), (0, 1)], [(2, 5), (5, 8), (9, 9), (20, 21)]],
    ids=str,
)
def test_a_step_takes_the_next_batch_that_is_not_left_out(ranges):
    left_out = {n for first, last in ranges for n in range(first, last + 1)}
    expected = itertools.islice((n for n in itertools.count() if n not in left_out), 30)
    skipped = Skipped.of(ranges)
    assert [skipped.batch(step) for step in range(30)] == list(expected)
    # However they are put together, they are the same.
    halves = Skipped.of(ranges[1:]) | Skipped.of(ranges[:1])
    assert halves == skipped == skipped | halves
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(skipped.ranges))


def test_what_a_later_accident_leaves_out_changes_no_batch_before_it():
    before = Skipped.of([(3, 5)])
    after = before | Skipped.of([(before.batch(7), before.batch(9))])
    assert [after.batch(step) for step in range(7)] == [before.batch(step) for step in range(7)]
    assert after.batch(7) == before.batch(10)
