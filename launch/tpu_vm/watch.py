"""The loop around the reconciler: looks, decides, does, until the job is finished and all is gone.

Whatever ends it, what it asked for or adopted is deleted and seen to be gone: success, a failure, a
budget, a signal, an exception. Only a killed process leaves something, and the record of it.
"""

import dataclasses
import math
import random
import signal
from collections.abc import Callable, Sequence

from configs.errors import UserError
from launch.tpu_vm import adoption, reconciler
from launch.tpu_vm.client import Client, Here
from launch.tpu_vm.failures import Failure, Kind
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.reconciler import (
    Create,
    Delete,
    Ended,
    Finish,
    Gone,
    JobOnHosts,
    JobState,
    Limits,
    Lost,
    LostHosts,
    OtherJob,
    Past,
    Running,
    Seen,
    Stage,
    Start,
    Starting,
    Wait,
)
from launch.tpu_vm.record import Record, Shelf
from launch.tpu_vm.sight import Sight
from launch.tpu_vm.signals import Clock

AGAIN = 120.0  # seconds after which what is still there is deleted once more
CLEARING = 3600.0  # seconds for which deletes are tried at the end
CLEARING_DENIED = 300.0  # the same where Google Cloud does not let us
_UNKNOWN = 5  # failures in a row that nobody understands, after which it is given up


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a watch ended."""

    status: int
    why: str = ""
    left: str = ""  # what may be left and how to delete it; "" where nothing is


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done on a TPU."""

    request: Request
    limits: Limits
    job: JobOnHosts
    take_over: bool = False  # whether what another run asked for may be taken over


class Watch:
    """Keeps a job on a TPU until it is finished; or only gives back what there is."""

    def __init__(
        self,
        client: Client,
        shelf: Shelf,
        record: Record,
        clock: Clock,
        say: Callable[[str], None],
        asked: Sequence[int] = (),
        work: Work | None = None,
        chance: random.Random | None = None,
        keep: bool = False,
    ) -> None:
        """Args: as they are named; ``asked`` fills with signals; ``keep`` deletes nothing."""
        self._client, self._shelf, self._record, self._clock = client, shelf, record, clock
        self._work, self._say, self._asked, self._keep = work, say, asked, keep
        self._chance = chance or random.Random()
        self._sight = Sight(client, shelf, record, clock, say)
        self._state: JobState | None = None
        self._began = math.inf  # when the job was last started
        self._trouble = math.inf
        self._not_before = self._delete_again = self._start_again = -math.inf
        self._refusals = self._deletes = self._unknown = self._unstarted = 0
        self._barren, self._wrong = 0, ""
        self._dark: float | None = None  # since when the cloud cannot be seen
        self._losing = False  # whether what is deleted has been counted as lost

    def run(self) -> Outcome:
        """Returns how it ended, when nothing is left, or what."""
        try:
            refused = self._adopt()
            if refused is not None:
                return Outcome(refused.status, refused.why)
            end = self._live()
        except OtherJob as error:
            self._let_go(kept=True)
            return Outcome(reconciler.MISTAKE, f"{str(error).rstrip('.')}; all is left as it is")
        except UserError as error:
            end = Finish(reconciler.MISTAKE, str(error).rstrip("."))
        except BaseException as error:
            self._sight.tell(f"ends by {type(error).__name__}, and deletes what there is")
            self._let_go(kept=False)
            if left := self._clear():
                self._say(f"error: {left}.")
            raise
        self._let_go(kept=self._keep)
        if self._record.asked is None and not self._record.adopted:
            return Outcome(end.status, end.why)  # nothing was ever ours
        if self._keep:
            self._sight.tell("is kept, as --keep says; delete ends it")
            return Outcome(end.status, end.why)
        left = self._clear()
        return Outcome(end.status or (1 if left else 0), end.why, left)

    def give_back(self) -> str:
        """Deletes whatever has the name and sees it gone; returns what may be left."""
        record, began = self._record, self._clock.now()
        while True:
            here = self._client.look(record.slices)
            if isinstance(here, Failure):
                self._sight.show(here.sentence)
                spent = self._clock.now() - began >= CLEARING
                if self._asked or spent or not here.again:
                    return f"{here.sentence.rstrip('.')}; nothing has been deleted"
                self._clock.sleep(reconciler.SOON, self._asked)
            elif here.queued is not None and here.queued.nodes != record.slices:
                record.slices = here.queued.nodes
                self._sight.names = self._client.place.nodes(record.slices)
            else:
                break
        record.adopted += [each.created for each in here.all() if not record.owns(each)]
        return self._clear()

    def left(self) -> str:
        """Returns what may be left and the commands that delete it; ``""`` where nothing is."""
        return self._sight.left()

    @property
    def _working(self) -> Work:
        assert self._work is not None
        return self._work

    # What there is at the start.

    def _adopt(self) -> Finish | None:
        """Makes what is there this run's own; returns why that cannot be.

        A run that has asked for a resource before, or has one, takes no other over.
        """
        record, request = self._record, self._working.request
        fresh = record.asked is None
        while True:
            if self._asked:
                return None  # whatever is on record is deleted
            here = self._client.look(self._record.slices)
            if isinstance(here, Here):
                break
            if here.kind in (Kind.DENIED, Kind.MISTAKE) and fresh:
                return Finish(reconciler.MISTAKE, here.sentence.rstrip("."))
            self._sight.show(here.sentence)
            self._clock.sleep(reconciler.SOON, self._asked)
        strange = [each for each in here.all() if not record.owns(each)]
        if fresh or not strange:
            refused = adoption.refused(
                here, request, self._client.place, record.owns, self._working.take_over
            )
            if refused:
                return Finish(reconciler.MISTAKE, refused)
            if here.all():
                self._sight.tell(f"is there already ({adoption.states(here)}) and is taken over")
        if fresh and strange:
            record.adopted = [each.created for each in strange]
            record.asked = self._clock.now()  # it may be too new to be always seen
            try:
                self._sight.remember()
            except UserError as error:  # what is not on record is not this run's to delete
                return Finish(reconciler.MISTAKE, str(error).rstrip("."))
        self._sight.see(here)
        return None

    # The loop.

    def _live(self) -> Finish:
        while True:
            if self._asked:
                name = signal.Signals(self._asked[0]).name
                return Finish(128 + self._asked[0], f"asked to end by {name}")
            self._sight.look()
            self._poll()
            seen = self._seen()
            action = reconciler.decide(self._working.limits, self._past(), seen)
            if isinstance(action, Finish):
                return action
            end = self._do(action)
            if end is not None:
                return end

    def _do(self, action: reconciler.Action) -> Finish | None:
        if isinstance(action, Create):
            return self._create()
        if isinstance(action, Delete):
            self._delete(action.why, action.barren)
        elif isinstance(action, Start):
            self._start()
        elif isinstance(action, Wait):
            if action.why:
                self._sight.show(f"waits {_span(action.seconds)} {action.why}")
            self._clock.sleep(min(action.seconds, self._budget()), self._asked)
        return None

    def _create(self) -> Finish | None:
        self._release()
        record = self._record
        for created in record.adopted:
            record.forget(created)
        record.adopted = []
        record.attempts += 1
        record.asked, record.unsure = self._clock.now(), True
        self._sight.remember()  # before it is asked for: whoever comes next knows of it
        self._sight.tell(f"is asked for, for the {_ordinal(record.attempts)} time")
        failure = self._client.create(self._working.request, record.run)
        record.asked = self._clock.now()
        self._sight.last = None  # what was seen before says nothing any more
        self._losing = False
        self._trouble = math.inf
        record.unsure = failure is not None and (failure.unsure or failure.kind is Kind.EXISTS)
        if failure is not None:
            if not failure.unsure:
                record.attempts -= 1  # nothing was made
            self._unknown = self._unknown + 1 if failure.kind is Kind.UNKNOWN else 0
            self._refusals += 1
            wait = reconciler.backoff(self._refusals, self._chance)
            self._not_before = record.asked + wait
        self._sight.remember()
        if failure is not None:
            if not failure.again and failure.kind is not Kind.EXISTS:
                return Finish(reconciler.MISTAKE, failure.sentence.rstrip("."))
            if self._unknown >= _UNKNOWN:
                return Finish(1, failure.sentence.rstrip("."))
            self._sight.tell(failure.sentence)
        return None

    def _delete(self, why: str, barren: bool = False) -> None:
        assert self._sight.last is not None
        if not self._losing:
            self._barren = self._barren + 1 if barren else self._barren
        if isinstance(self._state, Ended) and self._state.status not in (0, reconciler.MISTAKE):
            self._record.crashes = max(0, self._record.crashes - 1)  # it fell with its hosts
        self._release()
        now = self._clock.now()
        if not self._losing:
            self._losing = True
            self._refusals += 1
            if self._refusals > 1:
                wait = reconciler.backoff(self._refusals - 1, self._chance)
                self._not_before = now + wait
        self._sight.show(f"{why}, and is deleted")
        if self._sight.last.queued is not None:
            tried = [self._client.delete()]
        else:
            nodes = [node for node in self._sight.last.nodes.values() if node.state != "DELETING"]
            tried = [
                self._client.delete_node(n.name) for n in nodes or self._sight.last.nodes.values()
            ]
        failed = [each for each in tried if each is not None and each.kind is not Kind.NOT_FOUND]
        self._deletes = self._deletes + 1 if failed else 0
        wait = reconciler.backoff(self._deletes, self._chance) / 4 if failed else AGAIN
        self._delete_again = self._clock.now() + min(wait, AGAIN)
        self._trouble = self._clock.now()
        self._sight.denied = any(each.kind is Kind.DENIED for each in failed)
        for each in failed:
            self._sight.show(each.sentence)

    def _start(self) -> None:
        assert self._sight.last is not None
        self._sight.show("is ready, and the job is started")
        try:
            self._working.job.start([self._sight.last.nodes[name] for name in self._sight.names])
        except LostHosts as error:
            self._state = None
            self._lose(str(error))
            return
        self._state, self._began = Starting(), self._clock.now()

    def _lose(self, reason: str) -> None:
        """Notes that hosts could not be reached; the next try is after a while."""
        self._unstarted += 1
        self._wrong = reason
        now = self._clock.now()
        self._start_again = now + reconciler.backoff(self._unstarted, self._chance)
        self._trouble = min(self._trouble, now)
        self._sight.tell(f"has hosts that cannot be reached ({reason})")

    # What is seen.

    def _poll(self) -> None:
        if self._state is None or isinstance(self._state, Ended):
            return
        now, before = self._clock.now(), self._state
        self._state = self._working.job.poll()
        record = self._record
        step = self._state.step if isinstance(self._state, Running | Ended) else -1
        further = step > record.step
        record.step = max(record.step, step)
        if isinstance(self._state, Running):
            self._trouble = math.inf
            self._unstarted = self._barren = 0
            if now >= self._began + reconciler.RESTED:
                self._refusals = 0
            if further:
                record.crashes = 0
        elif isinstance(self._state, Lost):
            if not isinstance(before, Lost):
                self._lose(self._state.reason or "the connection has ended")
        elif isinstance(self._state, Starting):
            return
        elif self._state.status not in (0, reconciler.MISTAKE):
            self._trouble = math.inf
            record.crashes = 1 if further else record.crashes + 1
            wait = reconciler.backoff(record.crashes, self._chance)
            self._start_again = now + max(reconciler.SETTLES, wait)
            reason = self._state.reason or f"the job ended with exit status {self._state.status}"
            self._sight.tell(f"{reason}; it is started again where its hosts are well")

    def _seen(self) -> Seen:
        seen = Seen(self._clock.now(), self._sight.names, self._sight.fresh, self._state)
        if seen.cloud is None:
            self._dark = seen.now if self._dark is None else self._dark
        else:
            if self._dark is not None:  # what could not be seen may have got well meanwhile
                self._trouble += seen.now - self._dark
                self._dark = None
            found = reconciler.stage(seen, self._past())
            ready = found is Stage.FIT and self._state is None and not self._unstarted
            if found in (Stage.UNFIT, Stage.GOING):
                self._trouble = min(self._trouble, seen.now)
            elif ready or found in (Stage.ABSENT, Stage.PENDING):
                self._trouble = math.inf
        return seen

    def _past(self) -> Past:
        record = self._record
        return Past(
            record.attempts,
            record.held,
            -math.inf if record.asked is None else record.asked,
            record.unsure,
            self._not_before,
            self._delete_again,
            self._start_again,
            self._trouble,
            record.crashes,
            self._barren,
            self._wrong,
            min(reconciler.backoff(self._sight.blind, self._chance) / 2, reconciler.BLIND),
        )

    # The end.

    def _release(self) -> None:
        """Lets go of a job whose hosts are to be deleted, or are gone."""
        if self._state is not None:
            self._working.job.abandon()
        self._state, self._unstarted = None, 0
        if self._sight.last is not None:
            for each in self._sight.last.all():
                self._record.forget(each.created)

    def _let_go(self, kept: bool) -> None:
        """Has a job that runs save and end, unless it is kept with its hosts."""
        if self._state is None:
            return
        try:
            if isinstance(self._state, Ended) or kept:
                self._working.job.abandon()
            else:
                self._sight.tell("has its job save and end")
                self._working.job.stop()
        except Exception as error:  # whatever it is, its hosts are given back
            self._sight.tell(f"has a job that does not end as it should ({error})")
        self._state = None

    def _clear(self) -> str:
        """Deletes what there is and sees it gone; returns what may be left."""
        self._sight.forgiving = True
        try:
            return self._delete_all()
        except Exception as error:  # whatever it is, it is said what may be left
            left = self._sight.left() or f"{self._client.place.name} may be left; list shows it"
            return f"{left} (what stood in the way: {error})"

    def _delete_all(self) -> str:
        began = self._clock.now()
        self._trouble, self._delete_again, self._losing = math.inf, -math.inf, True
        while True:
            self._sight.look()
            seen = self._seen()
            action = reconciler.clear(self._past(), seen)
            if isinstance(action, Gone):
                self._shelf.delete()
                self._sight.tell("is gone, nothing is left")
                return ""
            spent = self._clock.now() - began
            if spent >= (CLEARING_DENIED if self._sight.denied else CLEARING):
                return self._sight.left()
            if isinstance(action, Delete):
                self._delete(action.why)
            elif isinstance(action, Wait):
                if action.why:
                    self._sight.show(f"waits {_span(action.seconds)} {action.why}")
                self._clock.sleep(action.seconds, ())

    def _budget(self) -> float:
        """Returns the seconds for which TPUs may still be held."""
        if self._record.looked is None or self._work is None:
            return math.inf
        return max(1.0, self._working.limits.hours * 3600 - self._record.held)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0)
    return f"{number}{suffix or 'th'}"
