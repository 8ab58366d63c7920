"""Calls against the ends found by going through all steps."""

import pytest

from train.calls import Calls


def by_hand(start, steps, divisors):
    ends = [
        s for s in range(start + 1, steps + 1) if s == steps or any(s % d == 0 for d in divisors)
    ]
    return [range(a, b) for a, b in zip([start, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("start", "steps", "per_call", "everies"),
    [
        (0, 20, 5, ()),
        (0, 23, 5, (7, 0)),
        (3, 40, 6, (10, 4)),
        (12, 40, 100, (9, 12)),
        (0, 9, 1, (0, 0)),
        (7, 8, 10, (8,)),
        (8, 8, 3, (2,)),
        (9, 8, 3, ()),
    ],
)
def test_calls_end_where_something_is_due(start, steps, per_call, everies):
    calls = Calls(start, steps, per_call, everies)
    expected = by_hand(start, steps, [per_call, *filter(None, everies)])
    assert list(calls) == expected
    assert len(calls) == len(expected)
    with pytest.raises(IndexError):
        calls[len(expected)]


def test_a_run_of_any_length_is_cut_at_once():
    calls = Calls(0, 2**31 - 1, 3, (500, 1000))
    assert calls[0] == range(3)
    assert calls[len(calls) - 1] == range(2**31 - 2, 2**31 - 1)
