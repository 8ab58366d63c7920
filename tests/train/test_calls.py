"""Calls against the ends found by hand."""

import itertools

import pytest

from train.calls import calls


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ((0, 20, 5), [5, 10, 15, 20]),
        ((0, 23, 5, (7, 0)), [5, 7, 12, 14, 19, 21, 23]),
        ((3, 20, 6, (10, 4)), [4, 8, 10, 12, 16, 20]),
        ((0, 6, 4, (0, 0), (2, 5)), [2, 5, 6]),
        ((4, 6, 4, (), (2, 5)), [5, 6]),
        ((8, 8, 3, (2,)), []),
        ((9, 8, 3), []),
    ],
)
def test_calls_end_where_something_is_due(given, ends):
    assert list(calls(*given)) == [range(*pair) for pair in itertools.pairwise([given[0], *ends])]


def test_a_run_of_any_length_is_cut_as_it_goes():
    found = itertools.islice(calls(0, 2**31 - 1, 3, (500, 1000)), 2)
    assert list(found) == [range(3), range(3, 6)]
