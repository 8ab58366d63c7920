"""Random sequences of faults, and what has to hold after each, whatever happens."""

import random
import signal

from launch.tpu_vm.reconciler import Limits
from tests.launch.tpu_vm.cloud import LATE, Faults
from tests.launch.tpu_vm.world import ZONE, World

HOUR = 3600.0


def _often(chance: random.Random, most: float) -> float:
    """Returns how often a fault comes: in half of the sequences never."""
    return 0.0 if chance.random() < 0.5 else chance.uniform(0, most)


def faults(chance: random.Random) -> Faults:
    """Returns faults of one sequence."""
    return Faults(
        before=_often(chance, 0.2),
        after=_often(chance, 0.15),
        timeout=_often(chance, 0.05),
        late=_often(chance, 0.05),
        stale=_often(chance, 0.3),
        quota=_often(chance, 0.4),
        stockout=_often(chance, 0.4),
        fails=_often(chance, 0.6),
        delete_fails=_often(chance, 0.5),
        slow=_often(chance, 0.2),
        lifetime=chance.choice([0.0, 600.0, 3600.0, 7200.0]),
        illness=chance.choice([0.0, 0.0, 3600.0]),
        meddling=_often(chance, 0.3),
    )


def world(seed: int) -> World:
    """Returns the world of one sequence."""
    chance = random.Random(f"sequence {seed}")
    limits = Limits(
        hours=chance.choice([1e9, 1e9, 0.3, 1.0, 3.0]),
        attempts=chance.choice([1e9, 1e9, 1, 3, 6]),
        crashes=chance.choice([1, 3, 1000]),
    )
    slices = chance.choice([1, 1, 1, 2, 3])
    made = World(
        seed,
        faults(chance),
        slices,
        chance.choice(["spot", "spot", "on-demand"]),
        limits,
        steps=chance.choice([60, 300, 500]),
        until=chance.uniform(0.2, 5),
    )
    if chance.random() < 0.3:
        made.crashes = chance.uniform(0, 0.02)
    if chance.random() < 0.3:
        made.unreachable = chance.uniform(0, 0.1)
    cloud = made.cloud
    # Others' resources, whose names begin as ours do.
    cloud.put_queued("heads-2x", ZONE)
    cloud.put_queued("head", ZONE, "SUSPENDED")
    cloud.put_queued("heads", "us-east1-d", labels={"launched-by": "manyheads"})
    cloud.put_node(f"heads-{slices}" if slices > 1 else "heads-0", ZONE)
    cloud.put_node("headsman", ZONE, labels={"launched-by": "manyheads", "manyheads-run": "0"})
    # What is there already under our name, which is taken over.
    found = chance.random()
    if slices == 1 and found < 0.1:
        cloud.put_node("heads", ZONE, ours=True)
    elif found < 0.25:
        names = made.place.nodes(slices)
        state = chance.choice(["ACTIVE", "SUSPENDED", "FAILED", "WAITING_FOR_RESOURCES"])
        cloud.put_queued(
            "heads",
            ZONE,
            state,
            ours=True,
            node_names=names,
            several=slices > 1,
            spot=True,
        )
        coming = {"ACTIVE": "preempt", "WAITING_FOR_RESOURCES": "provisioning"}.get(state)
        if coming and (coming != "preempt" or chance.random() < 0.5):
            cloud.later(chance.uniform(60, 7200), coming, "heads", ZONE)
    if chance.random() < 0.1:
        made.bugs = 0.01
    if chance.random() < 0.15:
        made.usurped = made.time + chance.uniform(0, HOUR)
    if chance.random() < 0.25:
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        made.signals = [(made.time + chance.uniform(0, 3 * HOUR), int(number))]
        if chance.random() < 0.3:  # while the first request is on its way
            cloud.script = [["queued-resources create", "late"]]
            made.signals = [(made.time + chance.uniform(5, 400), int(number))]
    for _ in range(chance.choice([0, 0, 1, 2, 4])):
        made.kills.append(made.time + chance.uniform(0, 3 * HOUR))
    made.kills.sort()
    if chance.random() < 0.15:
        made.killed_at_create = chance.choice([1, 1, 2, 3])
    return made


def wrong(made: World) -> list[str]:
    """Runs a sequence to its end; returns what does not hold."""
    others, before = made.others(), made.ours()
    outcome = made.run()
    others = sorted([*others, *made.taken])
    found = list(made.violations)
    signalled = bool(made.asked)
    if outcome.left:
        if not outcome.status or "gcloud compute tpus" not in outcome.left:
            found.append(f"left without saying so: {outcome}")
        if made.calm is None:
            found.append(f"left, though nothing stood in the way: {outcome}")
    elif (here := made.ours()) and (made.shelf.adopted or made.cloud.made or not before):
        found.append(f"is left: {here}")
    if made.others() != others:
        found.append(f"others' resources were touched: {made.others()}")
    if made.cloud.clashes:
        found.append(f"asked for while there: {made.cloud.clashes}")
    if made.cloud.made > made.limits.attempts:
        found.append(f"asked for {made.cloud.made} times, of {made.limits.attempts}")
    unseen = made.away + made.blind + 600
    if made.used > made.limits.hours * HOUR + unseen:
        found.append(f"used for {made.used} s, of {made.limits.hours} h and {unseen} s unseen")
    if outcome.status == 0 and not made.finished:
        found.append(f"not finished: {outcome}")
    unlimited = made.limits.hours == made.limits.attempts == 1e9 and made.limits.crashes == 1000
    if (
        unlimited
        and not (signalled or outcome.status == 3 or made.taken)
        and not (made.finished and outcome.status == 0)
    ):
        found.append(f"did not finish: {outcome}")
    if outcome.status in (1, 2) and not (outcome.why or outcome.left):
        found.append(f"no reason given: {outcome}")
    if not outcome.left and made.shelf.adopted == bool(before):
        made.time += LATE + 2 * HOUR  # what was on its way would have come
        if here := made.ours():
            found.append(f"appears later: {here}")
    return found
