"""The record of accidents: whole, in order, and refused where it is not."""

import json
import math

import pytest

from configs.errors import UserError
from model.manifest import digest_of
from train import events
from train.skipped import Skipped


def event(step, **more):
    return dict(step=step, batch=step - 1, kind="loss", loss="nan", action="skip", **more)


def test_events_come_back_and_say_what_is_left_out(tmp_path):
    assert events.read(tmp_path) == []
    happened = [event(3), event(7, skipped=[5, 6]), event(9, skipped=[7, 11])]
    for count in (1, 2, 3):
        events.write(tmp_path, happened[:count])
        assert events.read(tmp_path) == happened[:count]
    assert events.left_out(happened) == Skipped(((5, 11),))
    assert [path.name for path in tmp_path.iterdir()] == [events.NAME]


# Of right digests, as a mistake of the code would write them.
WRONG = (dict(step=3, batch=2, skipped=5), dict(step="x", batch=2))


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", "{}", '{"step": 3, "batch": 2}'),
        *(json.dumps(one | dict(digest=digest_of(one))) for one in WRONG),
    ],
)
def test_a_line_that_is_damaged_is_refused(tmp_path, line):
    events.write(tmp_path, [event(3), event(4)])
    path = tmp_path / events.NAME
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="events.jsonl is damaged in line 3; restore it"):
        events.read(tmp_path)


def test_a_changed_digit_is_noticed(tmp_path):
    events.write(tmp_path, [event(3), event(7, skipped=[5, 6])])
    path = tmp_path / events.NAME
    path.write_text(path.read_text().replace("[5, 6]", "[4, 6]"))
    with pytest.raises(UserError, match="events.jsonl is damaged in line 2; restore it"):
        events.read(tmp_path)


def test_figures_that_are_not_finite_are_told_apart():
    assert [events.plain(x) for x in (math.nan, math.inf, -math.inf)] == ["nan", "inf", "-inf"]
    assert events.plain(0.1) == 0.1
