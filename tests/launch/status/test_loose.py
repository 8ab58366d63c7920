"""Values as they are wanted, and nothing in place of all others."""

import datetime

import pytest

from launch.status import loose


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'{"a": "\xff"}', {"a": "\ufffd"}),
        (b"", None),
        (b"[1]", None),
        (b"{", None),
        (b'{"a": ' + b"9" * 5000 + b"}", None),  # more digits than Python reads
        (b"[" * 100_000, None),
        (b'{"a":' * 100_000, None),
    ],
)
def test_a_document_is_an_object_or_none(data, found):
    assert loose.document(data) == found


@pytest.mark.parametrize(
    ("value", "number", "whole"),
    [
        (3, 3.0, 3),
        (0, 0.0, 0),
        (-3, -3.0, None),
        (2.5, 2.5, None),
        (True, None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (10**400, None, None),
        (2**53, None, None),
        ("3", None, None),
        (None, None, None),
        ([3], None, None),
    ],
)
def test_numbers_are_numbers_of_a_size_that_one_has(value, number, whole):
    assert loose.number(value) == number
    assert loose.whole(value) == whole


def test_words_are_one_line_without_what_steers_a_terminal():
    assert loose.words("  a b\nc") == "a b"
    assert loose.words("a\x1b[31m\x9b\u202e\u00e9") == "a?[31m??\u00e9"
    assert loose.words("a" * 20, 5) == "aaaaa..."
    assert loose.words(5) == loose.words(None) == loose.words("\n") == ""


def test_a_moment_is_a_time_with_its_offset():
    then = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC).timestamp()
    assert loose.moment("2026-03-04T05:06:07+00:00") == then
    assert loose.moment("2026-03-04T07:06:07.000+02:00") == then
    for value in ("2026-03-04T05:06:07", "soon", "", 5, None, "0001-01-01T00:00:00+23:59"):
        found = loose.moment(value)
        assert found is None or found < 0


def test_tables_and_items_are_empty_where_there_are_none():
    assert loose.table({"a": 1}) == {"a": 1}
    assert loose.table([1]) == {}
    assert loose.items([{"a": 1}, 5, {}]) == [{"a": 1}, {}]
    assert loose.items({"a": 1}) == []
