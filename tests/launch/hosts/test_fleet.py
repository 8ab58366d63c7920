"""How an attempt of several hosts ends, and when they are asked to."""

import time

import pytest

from launch.group import GRACE, PATIENCE
from launch.hosts.fleet import KILLING, MARGIN, _End, _ending
from launch.hosts.host import Host
from launch.supervision import MISTAKE
from train.processes.watch import LOST


class Followed:
    """What is known of a host."""

    def __init__(self, name, state):
        self.host, self.ended, self.state = Host(name, name, ()), state is not None, state or {}
        self.reason = "" if state else "no route"


def of(status, **more):
    return dict(status=status, step=7) | more


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([of(0), of(0), of(0, step=9)], (0, "", 9)),
        # Those that fail of another's end say so with status 75; the one that failed gives its own.
        (
            [of(LOST), of(137, reason="process 1 was ended by SIGKILL"), of(LOST)],
            (137, "on b process 1 was ended by SIGKILL", 7),
        ),
        ([of(2), of(1), of(2)], (1, "the processes on b ended with exit status 1", 7)),
        ([of(2), of(2), of(2)], (MISTAKE, "the processes on a ended with exit status 2", 7)),
        ([of(LOST), None, of(LOST)], (LOST, "b cannot be reached (no route)", 7)),
        ([None, None, None], (LOST, "a, b, c cannot be reached (no route)", -1)),
        # One that hangs, and whose agent has the others stopped by it.
        (
            [of(143), of(LOST, reason="process 1 has finished nothing for 1 min"), of(143)],
            (LOST, "on b process 1 has finished nothing for 1 min", 7),
        ),
        ([of(0), None, of(0)], (LOST, "b cannot be reached (no route)", 7)),
        ([of(143), of(143), of(143)], (143, "the processes on a ended with exit status 143", 7)),
        (
            [of(LOST), None, of(139, reason="process 2 was ended by SIGSEGV")],
            (139, "on c process 2 was ended by SIGSEGV", 7),
        ),
        (
            [of(LOST), dict(attempt="3", taken=True), of(LOST)],
            (MISTAKE, "another launcher has taken the job on b", 7),
        ),
    ],
)
def test_the_host_that_failed_says_how_all_ended(states, expected):
    followed = [Followed(name, state) for name, state in zip("abc", states, strict=True)]
    ending = _ending(followed)
    assert (ending.status, ending.reason, ending.step) == expected


def test_all_are_asked_when_one_has_failed_and_killed_when_they_do_not_end(monkeypatch):
    now, told = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    end = _End(lambda kill: told.append((now[0], kill)))
    while now[0] < 310:
        now[0] += 1
        end.look(now[0] >= 150, [])
    kills = [(152 + PATIENCE + GRACE + MARGIN + n * (KILLING + 1), True) for n in range(3)]
    assert told == [(151 + PATIENCE, False), *kills]  # what does not end is killed again


def test_a_signal_asks_at_once_and_a_second_one_kills(monkeypatch):
    told, asked = [], []
    end = _End(told.append)
    end.look(False, asked)
    assert told == []
    asked.append(2)
    end.look(False, asked)
    end.look(False, asked)
    assert told == [False]
    asked.append(2)
    end.look(False, asked)
    end.look(False, asked)
    assert told == [False, True]
