"""Where each process is and how old its last sign is, as a process hears it from the others."""

import json
import time

import pytest

from train import heartbeat
from train.processes import watch
from train.processes.group import Processes
from train.processes.watch import RUNS, Watch
from train.processes.whereabouts import here


class Store:
    """The coordinator's store."""

    def __init__(self):
        self.held = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        self.held[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.held.items() if key.startswith(folder)]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_age_of_a_sign_is_by_the_clock_of_who_hears_it(clock, monkeypatch):
    monkeypatch.setattr(watch, "on_abort", lambda last_words: None)
    store = Store()
    first, second = (Watch(store, index, 3, "localhost:1") for index in (0, 1))
    first.say(RUNS)
    assert first.signs() == {0: here() | dict(stacks=None, seconds=0.0)}
    clock[0] += 4
    second._where = second._where | dict(host="hostb", pid=99)
    second.say(RUNS)
    first.say(RUNS)
    clock[0] += 23.04
    first.say(RUNS)
    signs = first.signs()
    assert {index: (sign["host"], sign["pid"]) for index, sign in signs.items()} == {
        0: (here()["host"], here()["pid"]),
        1: ("hostb", 99),
    }
    assert {index: sign["seconds"] for index, sign in signs.items()} == {0: 0.0, 1: 23.0}
    assert first.called(1) == "process 1 on hostb"
    json.dumps(signs)


def test_a_process_that_is_alone_knows_where_it_is(monkeypatch):
    monkeypatch.setattr(heartbeat, "_stacks", 5)
    assert Processes().signs() == {0: here() | dict(stacks=5, seconds=0.0)}
