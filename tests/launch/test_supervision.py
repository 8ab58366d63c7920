"""Which endings are followed by another start, after how long, and what is said."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.supervision import Ending, Restarts, minutes, supervise
from train.processes.watch import LOST

STATUSES = st.sampled_from([0, 1, 2, LOST, 130, 137, 143, 255])


@given(st.lists(st.tuples(STATUSES, st.booleans()), max_size=20), st.integers(0, 5))
def test_so_many_restarts_in_a_row_and_none_after_the_end_or_a_mistake(endings, limit):
    restarts, row = Restarts(limit, 5.0, 60.0), []
    for status, progress in endings:
        wait = restarts.after(status, progress)
        row = [] if progress else row
        if status in (0, 2) or len(row) == limit:
            assert wait == math.inf
            return
        row.append(wait)
    waits = [5.0, 10.0, 20.0, 40.0, 60.0]
    assert row == waits[: len(row)]


def test_the_wait_is_bounded_however_many_there_were():
    restarts = Restarts(10_000, 1.0, 300.0)
    assert {restarts.after(1, False) for _ in range(5000)} == {*(2.0**n for n in range(9)), 300.0}


class Run:
    """A run whose groups end as they are told, each with the newest saved step of then."""

    def __init__(self, *groups, asked=()):
        self.groups, self.step = list(groups), 0
        self.signals, self.asked, self.lines = list(asked), [], []

    def attempt(self):
        ending, self.step = self.groups.pop(0)
        if not self.groups:
            self.asked += self.signals
        return ending

    def supervised(self, limit, first=0.0):
        restarts = Restarts(limit, first, 300.0)
        return supervise(self.attempt, restarts, lambda: self.step, self.asked, self.lines.append)


KILLED = Ending(137, "process 1 was ended by SIGKILL", 24)
FAILED = Ending(1)
FINISHED = Ending(0, step=40)
GOES_ON = "the same command goes on from what was saved."


def test_each_restart_and_the_last_failure_are_said_in_a_line():
    hung = Ending(LOST, "process 0 hangs", 24, "the stacks of its threads are above")
    run = Run((FAILED, 0), (KILLED, 20), (hung, 20), (Ending(143, step=22), 20))
    assert run.supervised(2) == 143
    assert run.lines == [
        "restart 1 of 2: the processes ended with exit status 1; the run goes on from the "
        "beginning in 0 s.",
        "restart 1 of 2: process 1 was ended by SIGKILL; the run goes on from step 20 in 0 s.",
        "restart 2 of 2: process 0 hangs; the stacks of its threads are above; the run goes on "
        "from step 20 in 0 s.",
        "error: the processes were asked to end by SIGTERM, after 2 restarts without a new step; "
        + GOES_ON,
    ]


@pytest.mark.parametrize(
    ("groups", "limit", "expected", "said"),
    [
        ([(FINISHED, 40)], 0, 0, []),
        ([(FINISHED, 40)], 3, 0, []),
        ([(FAILED, 0)], 0, 1, []),  # it has said so itself
        ([(KILLED, 20)], 0, 137, [f"error: process 1 was ended by SIGKILL; {GOES_ON}"]),
        ([(Ending(2), 0)], 0, 2, []),
        ([(Ending(2), 0)], 3, 2, ["error: the processes ended with exit status 2, a mistake that"]),
    ],
)
def test_one_group_is_enough_where_another_is_of_no_use(groups, limit, expected, said):
    run = Run(*groups)
    assert run.supervised(limit) == expected
    assert [line[: len(start)] for line, start in zip(run.lines, said, strict=True)] == said


@pytest.mark.parametrize(
    "groups",
    [
        # A step is new where none was finished before, or none saved: each is progress once.
        [(Ending(1, step=s), 0) for s in (3, 5, 6)] + [(FINISHED, 40)],
        [(Ending(1, step=9), saved) for saved in (0, 4, 8)] + [(FINISHED, 40)],
    ],
)
def test_a_run_that_gets_further_is_restarted_without_end(groups):
    run = Run(*groups)
    assert run.supervised(1) == 0
    assert [line[:15] for line in run.lines] == ["restart 1 of 1:"] * 3


def test_steps_that_are_repeated_are_no_progress():
    """It was saved at step 20, and fails at 24 each time."""
    run = Run(*[(KILLED, 20)] * 4)
    assert run.supervised(3) == 137
    assert [line[:9] for line in run.lines] == ["restart 1", "restart 2", "restart 3", "error: pr"]


@pytest.mark.parametrize(
    ("status", "limit", "expected"),
    [(143, 3, 130), (137, 3, 130), (0, 3, 0), (2, 3, 2), (143, 0, 143)],
)
def test_who_is_asked_to_end_does_not_start_again(status, limit, expected):
    run = Run((Ending(status), 20), asked=[2])
    assert run.supervised(limit) == expected
    assert not run.lines


def test_a_signal_ends_the_wait():
    run = Run((FAILED, 0), (FINISHED, 40))
    restarts = Restarts(1, 100.0, 300.0)

    def say(line):
        run.lines.append(line)
        run.asked.append(15)  # as it comes while nothing runs

    began = time.monotonic()
    assert supervise(run.attempt, restarts, lambda: 0, run.asked, say) == 143
    assert time.monotonic() - began < 5
    assert run.lines[-1].startswith("error: asked to end by SIGTERM, with nothing new to save")
    assert len(run.groups) == 1


def test_what_somebody_has_had_stopped_is_not_started_again():
    said, endings = [], [Ending(143, "on a the processes ended", 5, wanted=True)]
    status = supervise(endings.pop, Restarts(3, 0.0, 0.0), lambda: 0, [], said.append)
    assert status == 143
    assert said == ["error: on a the processes ended, as somebody stopped it; run again to go on."]


def test_hangs_are_looked_for_where_there_are_restarts():
    cases = ((None, 0, 0.0), (None, 1, 10.0), (0.0, 1, 0.0), (3.0, 0, 3.0))
    for stall, restarts, expected in cases:
        assert minutes(stall, restarts) == expected
