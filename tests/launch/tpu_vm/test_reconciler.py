"""Each state that can be seen, and what is to be done about it."""

import dataclasses
import itertools
import math
import random

import pytest

from launch.tpu_vm.reconciler import (
    LONGEST,
    PATIENCE,
    SETTLES,
    SETTLES_UNSURE,
    Create,
    Delete,
    Ended,
    Finish,
    Gone,
    Limits,
    Lost,
    Observed,
    Past,
    Running,
    Seen,
    Start,
    Wait,
    backoff,
    clear,
    decide,
    holds,
)
from launch.tpu_vm.replies import Node, Queued

NOW = 1e6
# All states that the API's reference names, but for the unspecified one.
QUEUED = (
    *("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"),
    *("SUSPENDING", "SUSPENDED", "FAILED", "DELETING"),
)
NODES = (
    *("CREATING", "READY", "RESTARTING", "REIMAGING", "DELETING", "REPAIRING", "STOPPED"),
    *("STOPPING", "STARTING", "PREEMPTED", "TERMINATED", "HIDING", "HIDDEN", "UNHIDING"),
)


def seen(state="", node="", health="", job=None, slices=1, queued="heads", **changed) -> Seen:
    names = ["heads"] if slices == 1 else [f"heads-{n}" for n in range(slices)]
    what = Queued("heads", state, "2026", "v5litepod-8", **changed) if state else None
    nodes = {
        name: Node(name, node, "2026", "v5litepod-8", health=health, queued=queued)
        for name in names
        if node
    }
    return Seen(NOW, names, Observed(what, nodes), job)


@pytest.mark.parametrize(
    ("what", "done"),
    [
        (seen(), Create),
        (seen("CREATING"), Wait),
        (seen("ACCEPTED"), Wait),
        (seen("WAITING_FOR_RESOURCES"), Wait),
        (seen("PROVISIONING", "CREATING"), Wait),
        (seen("ACTIVE", "READY"), Start),
        (seen("ACTIVE", "READY", job=Running()), Wait),
        (seen("ACTIVE", "READY", "UNHEALTHY_MAINTENANCE", job=Running()), Wait),
        (seen("ACTIVE", "READY", "UNHEALTHY_MAINTENANCE"), Wait),
        (seen("ACTIVE", "REPAIRING"), Wait),
        (seen("ACTIVE"), Wait),
        (seen("ACTIVE", "PREEMPTED"), Delete),
        (seen("ACTIVE", "PREEMPTED", job=Running()), Delete),
        (seen("ACTIVE", "TERMINATED"), Delete),
        (seen("PROVISIONING", "PREEMPTED"), Delete),
        (seen("SUSPENDING", "PREEMPTED"), Wait),
        (seen("SUSPENDED"), Delete),
        (seen("FAILED"), Delete),
        (seen("FAILED", code=13, reason="an internal error has occurred"), Delete),
        (seen("DELETING", "DELETING"), Wait),
        (seen("", "READY", queued=""), Start),
        (seen("", "PREEMPTED", queued=""), Delete),
        (seen("", "READY"), Delete),
        (seen("ACTIVE", "READY", job=Lost()), Start),
        (seen("ACTIVE", "READY", job=Ended(1)), Start),
        (seen("ACTIVE", "READY", job=Ended(0)), Finish),
        (seen("ACTIVE", "READY", job=Ended(2, "a mistake")), Finish),
        (seen("SUSPENDED", job=Ended(0)), Finish),
        (dataclasses.replace(seen(), cloud=None), Wait),
        (dataclasses.replace(seen(), cloud=Observed(None, {}, "taken")), Finish),
    ],
)
def test_what_is_done(what, done):
    assert isinstance(decide(Limits(), Past(trouble=NOW), what), done)


@pytest.mark.parametrize(
    "what",
    [
        seen("ACTIVE", "REPAIRING"),
        seen("ACTIVE"),
        seen("ACTIVE", "READY", "UNHEALTHY_TENSORFLOW"),
        seen("ACTIVE", "READY", job=Lost("no route")),
        seen("ACTIVE", "READY"),  # its hosts could not be reached
        seen("SUSPENDING"),
        seen("DELETING"),
    ],
)
def test_patience_ends(what):
    early = decide(Limits(), Past(trouble=NOW - PATIENCE + 1), what)
    assert isinstance(early, Wait | Start)
    assert isinstance(decide(Limits(), Past(trouble=NOW - PATIENCE), what), Delete)


def test_budgets():
    past = Past(attempts=3, held=7200, asked=NOW - 1000)
    assert isinstance(decide(Limits(attempts=4), past, seen()), Create)
    spent = decide(Limits(attempts=3), past, seen())
    assert isinstance(spent, Finish)
    assert "3 times" in spent.why
    assert isinstance(decide(Limits(attempts=3), past, seen("ACTIVE", "READY")), Start)
    running = seen("ACTIVE", "READY", job=Running())
    assert isinstance(decide(Limits(hours=2.1), past, running), Wait)
    for what in (running, seen("WAITING_FOR_RESOURCES"), dataclasses.replace(running, cloud=None)):
        over = decide(Limits(hours=2), past, what)
        assert isinstance(over, Finish)
        assert "2 hours" in over.why
    done = decide(Limits(hours=2), past, seen("ACTIVE", "READY", job=Ended(0)))
    assert done == Finish(0)
    mistaken = decide(Limits(), past, seen("ACTIVE", "READY", job=Ended(2)))
    assert mistaken == Finish(2, "the job ended with exit status 2")


def test_crashes_end_after_so_many_without_a_step():
    crashed = seen("ACTIVE", "READY", job=Ended(7, "a process was killed"))
    assert isinstance(decide(Limits(crashes=3), Past(crashes=3), crashed), Start)
    over = decide(Limits(crashes=3), Past(crashes=4), crashed)
    assert over == Finish(7, "a process was killed, 4 times without a new step")
    # It may have fallen with its hosts, which is seen only later.
    waits = decide(Limits(crashes=3), Past(crashes=4, start_again=NOW + 9), crashed)
    assert waits == Wait(9)
    assert isinstance(decide(Limits(), Past(crashes=4), seen("SUSPENDED", job=Ended(7))), Delete)


def test_nothing_is_asked_for_before_it_is_sure_that_nothing_is_there():
    for unsure, settles in ((False, SETTLES), (True, SETTLES_UNSURE)):
        early = Past(asked=NOW - settles + 1, unsure=unsure)
        late = Past(asked=NOW - settles, unsure=unsure)
        assert decide(Limits(), early, seen()) == Wait(1)
        assert decide(Limits(), late, seen()) == Create()
        assert isinstance(clear(early, seen()), Wait)
        assert clear(late, seen()) == Gone()


def test_waits_before_a_further_try():
    waits = decide(Limits(), Past(not_before=NOW + 77), seen())
    assert isinstance(waits, Wait)
    assert waits.seconds == 77
    assert isinstance(decide(Limits(), Past(delete_again=NOW + 5), seen("FAILED")), Wait)


def test_a_mistake_in_the_request_is_not_asked_for_again():
    failed = seen("FAILED", code=3, reason="bad topology")
    given_up = decide(Limits(), Past(attempts=1), failed)
    assert isinstance(given_up, Finish)
    assert "bad topology" in given_up.why
    # Of one that was there before, nothing is known of the flags.
    assert isinstance(decide(Limits(), Past(attempts=0), failed), Delete)


@pytest.mark.parametrize("state", ["", *QUEUED, "SOMETHING_NEW"])
@pytest.mark.parametrize("node", ["", *NODES, "SOMETHING_NEW"])
def test_every_pair_of_states_comes_to_an_end(state, node):
    """Whatever is seen for ever, at the end its deletion is tried, and nothing is forgotten."""
    for queued in ("", "heads"):
        what = seen(state, node, queued=queued)
        action = clear(Past(trouble=NOW - PATIENCE), what)
        assert (action == Gone()) == (not state and not node)
        if action != Gone():
            assert isinstance(action, Delete)
        decided = decide(Limits(), Past(trouble=NOW - PATIENCE), what)
        pending = state in ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
        if not pending and (state or node):
            assert isinstance(decided, Start | Delete)


def test_what_costs():
    assert not holds(Observed(None, {}))
    costs = {state for state in QUEUED if holds(seen(state).cloud)}
    assert costs == {"PROVISIONING", "ACTIVE", "SUSPENDING", "DELETING"}
    free = {state for state in NODES if not holds(seen("", state).cloud)}
    assert free == {"STOPPED", "PREEMPTED", "TERMINATED", "HIDDEN"}


def test_one_of_several_slices_is_missing():
    whole = seen("ACTIVE", "READY", slices=3)
    assert isinstance(decide(Limits(), Past(), whole), Start)
    nodes = dict(itertools.islice(whole.cloud.nodes.items(), 2))
    part = dataclasses.replace(whole, cloud=Observed(whole.cloud.queued, nodes))
    assert isinstance(decide(Limits(), Past(trouble=NOW), part), Wait)
    assert isinstance(decide(Limits(), Past(trouble=NOW - PATIENCE), part), Delete)


def test_waits_grow_and_end_at_the_longest():
    chance = random.Random(0)
    means = [sum(backoff(n, chance) for _ in range(200)) / 200 for n in range(1, 12)]
    for n, (one, two) in enumerate(itertools.pairwise(means)):
        assert two == pytest.approx(min(2 * one, LONGEST), rel=0.15), n
    assert means[0] == pytest.approx(30, rel=0.1)
    assert math.isfinite(backoff(10**6, chance))
