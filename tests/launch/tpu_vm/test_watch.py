"""The watch in a made-up world: told cases, and random sequences."""

import collections
import itertools
import signal

import pytest

from configs.errors import UserError
from launch.tpu_vm.reconciler import BARREN, Ended, Limits, Lost, OtherJob, Starting
from launch.tpu_vm.record import Record
from launch.tpu_vm.signals import RealClock
from tests.launch.tpu_vm import sequences, world
from tests.launch.tpu_vm.cloud import Faults
from tests.launch.tpu_vm.world import ZONE, World

SEQUENCES = 600


def test_from_the_queue_to_the_end():
    made = World()
    outcome = made.run()
    assert (outcome.status, outcome.left, made.ours()) == (0, "", [])
    assert (made.finished, made.starts, made.cloud.made) == (True, 1, 1)
    assert made.shelf.kept is None
    told = [line.split(" ", 2)[2] for line in made.lines]
    # States as they change, each once in a row.
    assert not any(one == two for one, two in itertools.pairwise(told))
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING, heads CREATING", "ACTIVE, heads READY"):
        assert state in told
    assert told[-1] == "is gone, nothing is left"


def test_a_preemption_while_it_trains():
    made = World(steps=900)
    later = {"done": False}
    poll = made.poll

    def preempted():
        if made._step() > 400 and not later["done"]:
            later["done"] = True
            made.cloud.preempt("heads", ZONE)
        return poll()

    made.poll = preempted
    outcome = made.run()
    assert (outcome.status, made.finished, made.starts, made.cloud.made) == (0, True, 2, 2)
    assert made.base == 360  # it went on from what was saved
    assert made.ours() == []


@pytest.mark.parametrize("fault", ["quota", "stockout"])
def test_waits_grow_while_there_is_nothing_to_give(fault):
    made = World()
    made.cloud.script = [["queued-resources create", fault]] * 6
    times = []
    call = made.cloud.call
    made.cloud.call = lambda argv: (times.append(made.time) if "create" in argv else 0, call(argv))[
        1
    ]
    outcome = made.run()
    assert (outcome.status, made.cloud.made) == (0, 1)
    waits = [two - one for one, two in itertools.pairwise(times)]
    assert len(waits) == 6
    for number, wait in enumerate(waits):
        assert 0.7 * 30 * 2**number < wait < 1.3 * 30 * 2**number + 60
    sentence = {"quota": "quota is used up", "stockout": "no such TPU to give"}[fault]
    assert any(sentence in line for line in made.lines)


@pytest.mark.parametrize(
    ("fault", "said"), [("denied", "does not let you"), ("bad", "does not und")]
)
def test_what_no_other_try_can_help_is_given_up_at_once(fault, said):
    made = World()
    made.cloud.script = [["queued-resources create", fault]]
    outcome = made.run()
    assert (outcome.status, outcome.left) == (2, "")
    assert said in outcome.why
    assert made.time < 1.8e9 + 200
    made = World()
    made.cloud.script = [["queued-resources describe", fault]]
    assert made.run().status == 2
    assert made.cloud.made == 0


def test_a_login_that_runs_out_while_it_trains():
    made = World(steps=600)
    poll, once = made.poll, iter([True])

    def logged_out():
        if made._step() > 100 and next(once, False):
            made.cloud.script = [["describe", "logged_out"]] * 10
        return poll()

    made.poll = logged_out
    outcome = made.run()
    assert (outcome.status, made.starts) == (0, 1)
    assert any("gcloud auth login" in line for line in made.lines)


def test_a_budget_of_hours():
    made = World(limits=Limits(hours=1), steps=10_000)
    outcome = made.run()
    assert (outcome.status, outcome.left, made.ours()) == (1, "", [])
    assert "1 hours" in outcome.why
    assert 3300 < made.used < 3700
    assert made.saved > 200  # it was asked to save


def test_a_budget_of_attempts():
    made = World(faults=Faults(fails=1.0), limits=Limits(attempts=3))
    outcome = made.run()
    assert (outcome.status, made.cloud.made, made.ours()) == (1, 3, [])
    assert "asked for 3 times" in outcome.why


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", [1, 20, 700, 1500])
def test_a_signal(number, when):
    made = World()
    made.signals = [(made.time + when, int(number))]
    outcome = made.run()
    assert (outcome.status, outcome.left, made.ours()) == (128 + number, "", [])
    assert made.nodes is None


def test_kept():
    for ends in (False, True):
        made = World(steps=100)
        if not ends:
            made.signals = [(made.time + 1500, int(signal.SIGINT))]
        outcome = made.watch(keep=True).run()
        assert (outcome.status, outcome.left) == (0 if ends else 130, "")
        assert len(made.ours()) == 2
        assert made.shelf.kept is not None
        assert (made.nodes is None) == ends  # the job goes on
        # The next takes it over, and then nothing is left.
        made.asked.clear()
        assert made.run().status == 0
        assert (made.cloud.made, made.starts, made.ours()) == (1, 1 if not ends else 2, [])


def test_a_vm_without_a_queued_resource_is_taken_over():
    made = World()
    made.cloud.put_node("heads", ZONE, ours=True)
    outcome = made.run()
    assert (outcome.status, made.cloud.made, made.starts, made.ours()) == (0, 0, 1, [])
    assert "gcloud compute tpus tpu-vm delete" in made.cloud.calls
    assert "gcloud compute tpus queued-resources delete" not in made.cloud.calls


def test_a_vm_that_is_taken_over_is_replaced_when_it_is_preempted():
    made = World()
    made.cloud.put_node("heads", ZONE, ours=True, labels={"manyheads-run": "other"})
    made.cloud.preempt("heads", ZONE)
    outcome = made.run()
    assert (outcome.status, made.cloud.made, made.ours()) == (0, 1, [])


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (dict(accelerator="v5p-8"), "as v5p-8, not v5litepod-8"),
        (dict(several=True, node_names=["heads-0", "heads-1"]), "with --slices=2 and not 1"),
    ],
)
def test_what_is_there_and_not_what_is_asked_for_stays(put, said):
    made = World()
    made.cloud.put_queued("heads", ZONE, ours=True, **put)
    before = made.ours()
    outcome = made.run()
    assert outcome.status == 2
    assert said in outcome.why
    assert made.ours() == before
    assert made.cloud.made == 0


def test_a_node_of_another_queued_resource_stays():
    made = World()
    made.cloud.put_queued("theirs", ZONE, node_names=["heads"])
    before = made.others()
    outcome = made.run()
    assert outcome.status == 2
    assert "of the queued resource theirs" in outcome.why
    assert made.others() == before


def test_it_says_what_it_cannot_delete():
    made = World(slices=2)
    made.signals = [(made.time + 1500, int(signal.SIGINT))]
    made.cloud.script = [["delete", "denied"]] * 1000
    outcome = made.run()
    assert outcome.status == 130
    assert "heads in us-west4-a may be left; delete it with: gcloud compute tpus" in outcome.left
    assert "queued-resources delete heads --zone=us-west4-a --project=my-project" in outcome.left
    assert made.ours()
    assert made.shelf.kept is not None
    # A success that leaves something is none.
    made = World(steps=60)
    made.cloud.script = [["delete", "before"]] * 10_000
    outcome = made.run()
    assert (outcome.status, made.finished) == (1, True)
    assert outcome.left


def test_a_watch_that_is_left_knows_what_is_there():
    made = World()
    watching = made.watch()
    assert watching.left() == ""
    made.kills = [made.time + 1500]
    with pytest.raises(world.Killed):
        watching.run()
    assert "queued-resources delete heads" in watching.left()
    # Just after it was asked for, and not seen yet.
    made = World()
    gcloud = made.gcloud

    def killed(argv, timeout):
        if made.cloud.made:
            raise world.Killed
        return gcloud(argv, timeout)

    made.gcloud = killed
    watching = made.watch()
    with pytest.raises(world.Killed):
        watching.run()
    assert "queued-resources delete heads" in watching.left()
    # Nor does it know better where the answer to its request never came.
    made = World(faults=Faults())
    made.cloud.script = [["create", "late"]]
    watching = made.watch()
    made.kills = [made.time + 60]
    with pytest.raises(world.Killed):
        watching.run()
    assert "queued-resources delete heads" in watching.left()


def test_a_full_disk_neither_asks_nor_leaves():
    def write(record: Record) -> None:
        raise UserError("the disk is full; free space.")

    made = World()
    made.shelf.write = write
    outcome = made.run()
    assert (outcome.status, made.cloud.made) == (2, 0)
    assert "disk is full" in outcome.why
    # What is there, and cannot be put on record, is not taken over, and so not deleted.
    made = World()
    made.cloud.put_node("heads", ZONE)
    made.shelf.write = write
    before = made.others()
    assert made.run().status == 2
    assert made.others() == before
    # It fills while the job runs.
    made = World()
    poll = made.poll

    def fills():
        made.shelf.write = write
        return poll()

    made.poll = fills
    outcome = made.run()
    assert (outcome.status, made.ours()) == (2, [])


def test_an_exception_of_the_job_leaves_nothing():
    made = World()
    made.bugs = 1.0
    with pytest.raises(world.Bug):
        made.watch().run()
    assert (made.ours(), made.cloud.made) == ([], 1)


def test_a_watch_that_was_killed_is_gone_on_with():
    made = World(steps=900)
    made.kills = [made.time + 2400]
    outcome = made.run()
    # The job went on without it, and is joined.
    assert (outcome.status, made.cloud.made, made.starts, made.ours()) == (0, 1, 1, [])


def test_a_real_clock_wakes_at_a_signal():
    clock = RealClock()
    before = clock.now()
    clock.sleep(60, [int(signal.SIGINT)])
    clock.sleep(0.05, ())
    assert 0.04 < clock.now() - before < 10


def test_random_sequences():
    kinds = collections.Counter()
    hours = 0.0
    for seed in range(SEQUENCES):
        made = sequences.world(seed)
        assert sequences.wrong(made) == [], f"sequence {seed}: " + "\n".join(made.lines[-20:])
        hours += (made.time - 1.8e9) / 3600
        kinds["asked for again"] += made.cloud.made > 1
        kinds["started again"] += made.starts > 1
        kinds["taken over"] += made.shelf.adopted
        kinds["killed"] += made.away > 0
        kinds["asked to end"] += bool(made.asked)
        kinds["name taken"] += bool(made.taken)
        kinds["finished"] += made.finished
    assert hours > 1000
    # They meet what they are to meet.
    assert min(kinds.values()) > SEQUENCES // 100, kinds
    assert len(kinds) == 7


def test_what_cannot_be_started_is_given_up_after_a_few():
    made = World()
    made.unreachable = 1.0
    outcome = made.run()
    assert (outcome.status, outcome.left, made.ours()) == (1, "", [])
    assert outcome.why == "the job could not be started on 3 in a row (no route to host)"
    assert (made.cloud.made, made.starts) == (BARREN, 0)


def test_a_network_that_is_lost_here_takes_no_tpu_that_trains():
    made = World(steps=2000)
    poll, cut = made.poll, [0.0]

    def lost():
        if made._step() > 200 and not cut[0]:
            cut[0] = made.time + 7200  # gcloud and ssh alike, for two hours
            made.cloud.script = [["describe", "before"]] * 10_000
        if cut[0] > made.time:
            return Lost("no route to host")
        if cut[0]:
            made.cloud.script = []
        return poll()

    made.poll = lost
    outcome = made.run()
    assert (outcome.status, made.finished, made.ours()) == (0, True, [])
    assert (made.cloud.made, made.starts) == (1, 1)


def test_a_tpu_of_another_name_or_of_another_run_is_left_alone():
    made = World()
    made.cloud.put_queued("heads", ZONE, node_names=["my-tpu"])
    before = made.others()
    outcome = made.run()
    assert (outcome.status, made.others()) == (2, before)
    assert "and its TPU VM is called my-tpu; choose another --name" in outcome.why
    made = World()
    labels = {"launched-by": "manyheads", "manyheads-run": "0123456789abcdef"}
    made.cloud.put_queued("heads", ZONE, labels=labels)
    before = made.others()
    outcome = made.run()
    assert (outcome.status, made.others()) == (2, before)
    assert "asked for by another run of launch.tpu_vm" in outcome.why
    made.take_over = True
    assert made.run().status == 0
    assert made.others() == []


@pytest.mark.parametrize("when", [0.0, 3000.0])
def test_another_job_on_the_hosts_is_left_as_it_is_with_them(when):
    made = World()
    poll = made.poll

    def other():
        if made.time - made.since >= when:
            raise OtherJob("the job heads runs already with another code; stop it.")
        return poll()

    made.poll = other
    outcome = made.run()
    assert outcome.status == 2
    assert outcome.why.endswith("runs already with another code; stop it; all is left as it is")
    assert len(made.ours()) == 2
    assert made.shelf.kept is not None  # who comes next knows of them


def test_a_job_that_somebody_had_stopped_is_not_started_again():
    made = World()
    poll = made.poll

    def stopped():
        if made._step() > 100:
            return Ended(143, "asked to end", 100, wanted=True)
        return poll()

    made.poll = stopped
    outcome = made.run()
    assert (outcome.status, made.starts, made.ours()) == (143, 1, [])


def test_with_nothing_asked_for_it_ends_at_once_though_the_cloud_does_not_answer():
    made = World()
    made.cloud.script = [["describe", "before"]] * 10_000
    made.signals = [(made.time + 60, signal.SIGINT)]
    outcome = made.run()
    assert (outcome.status, outcome.left) == (128 + signal.SIGINT, "")
    assert made.time < 1.8e9 + 300


def test_a_job_that_takes_long_to_start_can_be_given_up():
    made = World()
    poll = made.poll
    made.poll = lambda: Starting() if made.time < made.since + 3000 else poll()
    made.signals = [(made.time + 3600, signal.SIGTERM)]
    outcome = made.run()
    assert (outcome.status, made.ours()) == (128 + signal.SIGTERM, [])
