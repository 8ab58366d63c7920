"""A watch in a made-up world: a cloud, training that saves, and time that passes when told."""

import random
from collections.abc import Sequence

from launch.tpu_vm import record as records
from launch.tpu_vm.accelerators import Accelerator
from launch.tpu_vm.client import Client
from launch.tpu_vm.gcloud import Reply, Request
from launch.tpu_vm.place import Place
from launch.tpu_vm.reconciler import Ended, JobState, Limits, Lost, LostHosts, Running
from launch.tpu_vm.record import Record
from launch.tpu_vm.replies import Node
from launch.tpu_vm.watch import Outcome, Watch, Work
from tests.launch.tpu_vm.cloud import Cloud, Faults
from tests.launch.tpu_vm.texts import PROJECT

ZONE = "us-west4-a"
STEP = 10.0  # seconds of a step
SAVES = 60  # steps between saves
MOST = 20_000  # commands of one watch


class Endless(AssertionError):
    """The watch goes on for ever."""


class Bug(Exception):
    """What should not happen in a job, and does."""


class Killed(BaseException):
    """The watch was killed: from then on it can do nothing at all."""


class Memory:
    """Keeps a record as a disk would: what is changed and not written is lost."""

    def __init__(self, world: "World") -> None:
        self._world, self.kept, self.adopted = world, None, False

    def read(self) -> Record | None:
        return None if self.kept is None else Record(**self.kept)

    def write(self, record: Record) -> None:
        self._world.living()
        copied = {k: list(v) if isinstance(v, list) else v for k, v in vars(record).items()}
        self.kept = copied
        self.adopted = self.adopted or bool(record.adopted)

    def delete(self) -> None:
        self._world.living()
        self.kept = None


class World:
    """A cloud with one job in it, and a machine from which it is watched."""

    def __init__(
        self,
        seed: int = 0,
        faults: Faults | None = None,
        slices: int = 1,
        tier: str = "spot",
        limits: Limits | None = None,
        steps: int = 900,
        name: str = "heads",
        until: float = 0.0,  # hours for which things go wrong
    ) -> None:
        self.time = 1.8e9
        self.chance = random.Random(f"world {seed}")
        self.cloud = Cloud(lambda: self.time, seed, faults)
        self.place = Place(name, ZONE, PROJECT)
        self.request = Request(Accelerator("v5litepod-8"), slices, tier)
        self.limits = limits or Limits()
        self.shelf = Memory(self)
        self.asked: list[int] = []
        self.signals: list[tuple[float, int]] = []  # when which comes
        self.kills: list[float] = []
        self.killed_at_create = 0  # by its number: killed before the answer to it
        self.calm = self.time + until * 3600 if until else None
        self.dead = self.take_over = False
        self.away = 0.0  # seconds without a watch
        self.lines: list[str] = []
        self.violations: list[str] = []
        self.used = 0.0  # seconds for which TPUs had been held when they were last used
        self.seen, self.blind = self.time, 0.0  # when all was last seen; the longest time without
        self.crashes = self.unreachable = self.bugs = 0.0  # how often, at a look
        self.taken: list[str] = []  # what somebody else made under our name
        self.usurped: float | None = None  # when somebody takes the name, once it is free
        # Training: it runs on nodes, by their numbers, and has saved.
        self.steps, self.saved, self.finished = steps, 0, False
        self.nodes: dict[str, str] | None = None
        self.base, self.since = 0, 0.0
        self.starts = 0

    # Time.

    def now(self) -> float:
        return self.time

    def living(self) -> None:
        if self.dead:
            raise Killed

    def pass_(self, seconds: float) -> None:
        """Lets time pass, and what comes with it."""
        self.living()
        self.time += seconds
        if self.kills and self.time >= self.kills[0]:
            self.kills.pop(0)
            self.dead = True
            raise Killed
        while self.signals and self.time >= self.signals[0][0]:
            self.asked.append(self.signals.pop(0)[1])
        if self.calm is not None and self.time >= self.calm:
            self.cloud.advance()
            self.cloud.settle()
            self.crashes = self.unreachable = self.bugs = 0.0
            self.calm = None

    def usurp(self) -> None:
        """Has somebody else take the name, where it is free.

        Not between a look and what follows from it: the API has no word for "if it is still that".
        """
        if not self.shelf.kept or self.shelf.kept["asked"] is None:
            return  # it would be taken over
        if any(event[2] == "late" for event in self.cloud.events):
            return  # the API knows a resource by its name, also when a delete comes late
        self.cloud.advance()
        names = [self.place.name, *self.place.nodes(self.request.slices)]
        here = {**self.cloud.queued, **self.cloud.nodes}
        if not any(f"{ZONE}/{name}" in here for name in names):
            self.usurped = None
            before = self.others()
            self.cloud.put_queued(self.place.name, ZONE, node_names=names[1:])
            self.taken = [each for each in self.others() if each not in before]

    def sleep(self, seconds: float, asked: Sequence[int]) -> None:
        assert seconds >= 0
        if asked:
            return
        if self.usurped is not None and self.time >= self.usurped:
            self.usurp()
        coming = self.signals[0][0] - self.time if self.signals and asked is self.asked else seconds
        self.pass_(max(0.0, min(seconds, coming)))

    def gcloud(self, argv: Sequence[str], timeout: float) -> Reply:
        if len(self.cloud.calls) > MOST:
            raise Endless(f"{MOST} commands, and no end")
        self.pass_(self.chance.uniform(1, 4))
        answer = self.cloud.call(argv)
        last = self.place.nodes(self.request.slices)[-1]
        told = answer.status == 0 or "NOT_FOUND" in answer.err
        if told and argv[3:6] == ["tpu-vm", "describe", last]:
            self.blind, self.seen = max(self.blind, self.time - self.seen), self.time
        if "create" in argv:
            self.used = self.cloud.held
            if self.killed_at_create and self.cloud.made == self.killed_at_create:
                self.killed_at_create = 0
                self.kills.insert(0, self.time)
        self.pass_(self.chance.uniform(0, 1))  # the answer is on its way
        if answer.status is None:
            self.pass_(timeout)
        return Reply(answer.status, answer.out, answer.err)

    # The job on its hosts.

    def _step(self) -> int:
        return self.base + int((self.time - self.since) / STEP)

    def _halt(self) -> None:
        step = self._step()
        self.saved = max(self.saved, min(step // SAVES * SAVES, self.steps))
        self.nodes = None

    def _alive(self) -> bool:
        self.cloud.advance()
        assert self.nodes is not None
        here = {k: n["uid"] for k, n in self.cloud.nodes.items() if n["state"] == "READY"}
        return all(here.get(key) == uid for key, uid in self.nodes.items())

    def start(self, nodes: Sequence[Node]) -> None:
        self.pass_(self.chance.uniform(10, 60))
        self.cloud.advance()
        self.used = self.cloud.held
        here = {node.name: self.cloud.nodes.get(f"{ZONE}/{node.name}") for node in nodes}
        for node in nodes:
            found = here[node.name]
            if found is None or found["state"] != "READY" or found["created"] != node.created:
                raise LostHosts(f"{node.name} does not answer")
        if [node.name for node in nodes] != self.place.nodes(self.request.slices):
            self.violations.append(f"started on {[node.name for node in nodes]}")
        if self.chance.random() < self.unreachable:
            raise LostHosts("no route to host")
        wanted = {f"{ZONE}/{name}": found["uid"] for name, found in here.items() if found}
        if self.nodes is not None:
            if self.nodes == wanted:
                return
            if self._alive():
                self.violations.append("the job runs twice")
            self._halt()
        self.nodes, self.base, self.since = wanted, self.saved, self.time
        self.starts += 1

    def poll(self) -> JobState:
        self.living()
        if self.chance.random() < self.bugs:
            raise Bug("a job that breaks the rules")
        if self.nodes is None:
            return Lost("the hosts are gone")
        if not self._alive():
            self._halt()
            return self.chance.choice([Lost("connection closed"), Ended(143, "asked to end")])
        self.used = self.cloud.held
        if self._step() >= self.steps:
            self._halt()
            self.saved, self.finished = self.steps, True
            return Ended(0, "", self.steps)
        if self.chance.random() < self.crashes:
            step = self._step()
            self._halt()
            return Ended(1, "a process crashed", step)
        if self.chance.random() < self.unreachable:
            return Lost("no route to host")
        return Running(self._step())

    def stop(self) -> None:
        self.pass_(self.chance.uniform(5, 60))
        if self.nodes is not None:
            self._halt()

    def abandon(self) -> None:
        self.living()

    # The watch.

    def watch(self, keep: bool = False) -> Watch:
        """Returns a watch as the command makes it."""
        kept = self.shelf.read() or records.new(self.place, self.request.slices)
        return Watch(
            Client(self.place, self.gcloud),
            self.shelf,
            kept,
            self,
            self.lines.append,
            self.asked,
            Work(self.request, self.limits, self, self.take_over),
            random.Random(self.chance.random()),
            keep,
        )

    def run(self) -> Outcome:
        """Watches; where it is killed, another watch begins some time later."""
        while True:
            watch = self.watch()
            try:
                return watch.run()
            except Bug as error:
                left = [line for line in self.lines if line.startswith("error: ")]
                return Outcome(3, str(error), " ".join(left))
            except Killed:
                self.dead = False
                self.asked.clear()
                away = self.chance.choice([1.0, 30.0, 600.0, 7200.0])
                self.time += away
                self.away += away

    # What is to hold.

    def ours(self) -> list[str]:
        """Returns what is there that was asked for or adopted."""
        self.cloud.advance()
        found = [*self.cloud.queued.items(), *self.cloud.nodes.items()]
        return [f"{key} {each['state']}" for key, each in found if each["ours"]]

    def others(self) -> list[str]:
        """Returns all that is nobody's business, whole."""
        found = [*self.cloud.queued.items(), *self.cloud.nodes.items()]
        return sorted(f"{key} {each}" for key, each in found if not each["ours"])
