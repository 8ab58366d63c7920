"""One small state machine: what is wished and what is seen give what is to be done next.

Nothing here asks or changes anything: ``watch`` does, and comes back with what it then sees.
Deciding again after each look is what makes a lost answer, a late state, a preemption at a bad
moment and a watch that was killed all the same case.
"""

import dataclasses
import enum
import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from configs.errors import UserError
from launch.tpu_vm import failures
from launch.tpu_vm.failures import Kind
from launch.tpu_vm.replies import Node, Queued

POLL = 60.0  # seconds between looks
SOON = 15.0  # the same while something is about to change
BLIND = 300.0  # the same at most, while the cloud cannot be asked
FIRST, LONGEST = 30.0, 1800.0  # seconds before a further try: the first, doubled up to the longest
PATIENCE = 900.0  # seconds for which what should get well, or go away, is left alone
# A resource may be seen only some time after it was asked for: those who poll meet a NOT_FOUND just
# after a create. Where the answer was lost, the request may still be on its way.
SETTLES, SETTLES_UNSURE = 60.0, 300.0
BARREN = 3  # resources in a row on which the job could not be started, after which it is given up
RESTED = 600.0  # seconds of running after which waits begin short again
MISTAKE = 2  # exit status of a user's mistake, which another start would repeat

_PENDING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_GOING = ("SUSPENDING", "DELETING")
_OVER = ("SUSPENDED", "FAILED")
_NODE_OVER = ("PREEMPTED", "TERMINATED", "STOPPED", "HIDDEN")
HEALTHY = ("", "HEALTHY", "HEALTH_UNSPECIFIED")
_HOLDS = ("PROVISIONING", "ACTIVE", "SUSPENDING", "DELETING")


@dataclasses.dataclass(frozen=True)
class Starting:
    """The hosts are set up, and the job is started there, which may take many minutes."""


@dataclasses.dataclass(frozen=True)
class Running:
    """The job runs on all its hosts."""

    step: int = -1  # the last that is known to be finished; -1: none


@dataclasses.dataclass(frozen=True)
class Ended:
    """The job has ended on all its hosts."""

    status: int  # exit status of the first that failed; 0: the run is finished
    reason: str = ""  # as a sentence begins; empty: the status says all
    step: int = -1
    wanted: bool = False  # whether somebody had it stopped


@dataclasses.dataclass(frozen=True)
class Lost:
    """The hosts, or some, cannot be reached; the job may run there or not."""

    reason: str = ""


JobState: TypeAlias = Starting | Running | Ended | Lost


class LostHosts(Exception):
    """Hosts could not be reached when the job was to start."""


class OtherJob(UserError):
    """Another job runs on the hosts, or somebody else looks after this one: nothing is touched."""


class JobOnHosts(Protocol):
    """A job on the hosts of TPU VMs, as the watch needs it."""

    def start(self, nodes: Sequence[Node]) -> None:
        """Asks all hosts of all slices to start the job, or joins it where it runs there already.

        It need not wait: what comes of it, ``poll`` tells.

        Raises:
          LostHosts: some could not be reached, and it has let go of the others; it is tried again,
            or they are replaced.
          UserError: what no other try can help.
        """

    def poll(self) -> JobState:
        """Tells, without waiting, how the job is.

        Raises:
          OtherJob: it is not ours to start, or to follow.
        """

    def stop(self) -> None:
        """Asks the job to save and end; returns when it has, or after a time of grace."""

    def abandon(self) -> None:
        """Lets go of the job and asks it nothing: its hosts are gone, or it is to go on alone."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What may be spent."""

    hours: float = math.inf  # for which TPUs are held
    attempts: float = math.inf  # how many times they are asked for
    crashes: int = 3  # in a row without a new step


@dataclasses.dataclass(frozen=True)
class Observed:
    """What there is in the cloud of ours, and what stands in the way."""

    queued: Queued | None
    nodes: Mapping[str, Node]
    foreign: str = ""  # what has our name and is not ours, in words

    def all(self) -> list[Queued | Node]:
        """Returns whatever there is."""
        return [*([self.queued] if self.queued else []), *self.nodes.values()]


@dataclasses.dataclass(frozen=True)
class Past:
    """What has been so far, in seconds of the watch's clock where it is a time."""

    attempts: int = 0
    held: float = 0.0  # seconds for which TPUs were held
    asked: float = -math.inf  # when they were last asked for
    unsure: bool = False  # whether the answer to that was lost
    not_before: float = -math.inf  # when they may next be asked for
    delete_again: float = -math.inf  # when a delete may next be tried
    start_again: float = -math.inf  # when the job may next be started
    trouble: float = math.inf  # since when something is not as it should be
    crashes: int = 0  # in a row without a new step
    barren: int = 0  # resources in a row on which the job could not be started
    wrong: str = ""  # why not, at last
    blind: float = SOON  # seconds until the next look, where the last showed nothing


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known at a moment."""

    now: float
    nodes: Sequence[str]  # the names that there should be
    cloud: Observed | None  # None where the cloud could not be asked
    job: JobState | None  # None where it has not been started on these hosts


class Stage(enum.Enum):
    """How far what there is in the cloud is from a slice that computes."""

    ABSENT = enum.auto()
    PENDING = enum.auto()  # in the queue, or being made
    FIT = enum.auto()  # all is ready
    UNFIT = enum.auto()  # it is there, and not ready, which may pass
    GOING = enum.auto()  # it is being taken away
    DEAD = enum.auto()  # it will not come back, and takes up quota


@dataclasses.dataclass(frozen=True)
class Create:
    """Ask for the resource."""


@dataclasses.dataclass(frozen=True)
class Delete:
    """Delete what there is."""

    why: str
    barren: bool = False  # whether the job could not be started on it


@dataclasses.dataclass(frozen=True)
class Start:
    """Start the job on the hosts."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """Look again after so many seconds."""

    seconds: float
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Finish:
    """End: the job is finished, or there is a reason to give up."""

    status: int
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Gone:
    """Nothing is left."""


Action: TypeAlias = Create | Delete | Start | Wait | Finish | Gone


def stage(seen: Seen, past: Past) -> Stage:
    """Returns how far what is seen in the cloud is; the cloud has been seen."""
    cloud = seen.cloud
    assert cloud is not None
    queued, nodes = cloud.queued, cloud.nodes
    state = queued.state if queued else ""
    going = [node.state == "DELETING" for node in nodes.values()]
    # Nodes that have lost their queued resource go one by one, and none waits for the others.
    if state in _GOING or (any(going) if queued else going and all(going)):
        return Stage.GOING
    if state in _OVER or any(node.state in _NODE_OVER for node in nodes.values()):
        return Stage.DEAD
    if state in _PENDING:
        return Stage.PENDING
    if queued is None:
        if not nodes:
            return Stage.ABSENT
        if any(node.queued for node in nodes.values()):
            # Left behind by a queued resource; unless that one is not to be seen yet.
            return Stage.DEAD if _settled(seen, past) else Stage.PENDING
    whole = set(seen.nodes) == set(nodes)
    if whole and all(n.state == "READY" and n.health in HEALTHY for n in nodes.values()):
        return Stage.FIT
    return Stage.UNFIT


def holds(cloud: Observed) -> bool:
    """Tells whether TPUs are held, which cost."""
    if any(node.state not in _NODE_OVER for node in cloud.nodes.values()):
        return True
    return cloud.queued is not None and cloud.queued.state in _HOLDS


def decide(limits: Limits, past: Past, seen: Seen) -> Action:
    """Returns what is to be done so that the job runs to its end."""
    job = seen.job
    if isinstance(job, Ended) and (job.wanted or job.status in (0, MISTAKE)):
        return Finish(job.status, job.reason or (_status(job) if job.status else ""))
    if past.held >= limits.hours * 3600:
        return Finish(1, f"the budget of {limits.hours:g} hours of TPUs is used up")
    if seen.cloud is None:
        return Wait(past.blind)
    if seen.cloud.foreign:
        return Finish(MISTAKE, seen.cloud.foreign)
    found = stage(seen, past)
    if found is Stage.DEAD:
        if past.attempts and (reason := _hopeless(seen.cloud.queued)):
            return Finish(MISTAKE, reason)
        return _delete(past, seen, _why_dead(seen.cloud))
    if found is Stage.GOING:
        return _at_last(past, seen, "is being taken away for too long")
    if found is Stage.ABSENT:
        return _create(limits, past, seen)
    if found is Stage.PENDING:
        return Wait(POLL)
    if isinstance(job, Running | Starting):
        return Wait(POLL if isinstance(job, Running) else SOON)
    if found is Stage.UNFIT:
        return _at_last(past, seen, "does not get well")
    return _start(limits, past, seen)


def clear(past: Past, seen: Seen) -> Action:
    """Returns what is to be done so that nothing is left."""
    if seen.cloud is None:
        return Wait(min(past.blind, POLL))
    if stage(seen, past) is Stage.ABSENT:
        if _settled(seen, past):
            return Gone()
        return Wait(_unsettled(seen, past), "until it is sure that nothing more appears")
    if stage(seen, past) is Stage.GOING and seen.now < past.trouble + PATIENCE:
        return Wait(SOON)
    return _delete(past, seen, "is not needed any more")


def backoff(failures_in_a_row: int, chance: random.Random) -> float:
    """Returns the seconds to wait before a further try, a quarter more or less by chance.

    Args:
      failures_in_a_row: so far.
      chance: keeps those who failed together from coming back together.
    """
    longer = FIRST * 2.0 ** min(max(failures_in_a_row - 1, 0), 16)
    return min(longer, LONGEST) * chance.uniform(0.75, 1.25)


def _settled(seen: Seen, past: Past) -> bool:
    return _unsettled(seen, past) <= 0


def _unsettled(seen: Seen, past: Past) -> float:
    return past.asked + (SETTLES_UNSURE if past.unsure else SETTLES) - seen.now


def _create(limits: Limits, past: Past, seen: Seen) -> Action:
    if not _settled(seen, past):
        return Wait(min(SOON, _unsettled(seen, past)))
    if past.barren >= BARREN:
        why = f" ({past.wrong})" if past.wrong else ""
        return Finish(1, f"the job could not be started on {past.barren} in a row{why}")
    if past.attempts >= limits.attempts:
        return Finish(1, f"TPUs were asked for {past.attempts} times, as --attempts allows")
    if seen.now < past.not_before:
        return Wait(past.not_before - seen.now, "before TPUs are asked for again")
    return Create()


def _start(limits: Limits, past: Past, seen: Seen) -> Action:
    """Returns what follows where hosts are ready and the job has not been started, or crashed."""
    if seen.now < past.start_again:  # what crashed it may be a preemption that is not seen yet
        return Wait(min(SOON, past.start_again - seen.now))
    if isinstance(seen.job, Ended) and past.crashes > limits.crashes:
        reason = seen.job.reason or _status(seen.job)
        return Finish(seen.job.status, f"{reason}, {past.crashes} times without a new step")
    if seen.now >= past.trouble + PATIENCE:
        return _delete(past, seen, "cannot be reached", barren=True)
    return Start()


def _status(job: Ended) -> str:
    return f"the job ended with exit status {job.status}"


def _at_last(past: Past, seen: Seen, why: str) -> Action:
    if seen.now < past.trouble + PATIENCE:
        return Wait(SOON)
    return _delete(past, seen, why)


def _delete(past: Past, seen: Seen, why: str, barren: bool = False) -> Action:
    if seen.now < past.delete_again:
        return Wait(min(SOON, past.delete_again - seen.now))
    return Delete(why, barren)


def _why_dead(cloud: Observed) -> str:
    states = sorted({n.state for n in cloud.nodes.values() if n.state in _NODE_OVER})
    if cloud.queued is None:
        return "was left without its queued resource" if not states else f"is {states[0]}"
    if cloud.queued.state == "FAILED":
        reason = cloud.queued.reason or "its time in the queue has run out"
        return f"is FAILED ({reason})"
    return f"is {states[0] if states else cloud.queued.state}"


def _hopeless(queued: Queued | None) -> str:
    """Returns why asking for a failed resource again would not help; "" where it may."""
    if queued is None or queued.state != "FAILED" or not queued.code:
        return ""
    failure = failures.of_code(queued.code, queued.reason)
    return failure.sentence if failure.kind in (Kind.MISTAKE, Kind.DENIED) else ""
