"""A job on the hosts of TPU VMs, which gcloud's ssh reaches; the watch starts and follows it."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Sequence

from configs.errors import UserError
from launch.group import GRACE
from launch.hosts import options
from launch.hosts.call import Unreachable, ask
from launch.hosts.fleet import Examine, Fleet
from launch.hosts.host import ALIVE, COMMAND, Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan
from launch.supervision import MISTAKE, Ending
from launch.tpu_vm import gcloud
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.place import Place
from launch.tpu_vm.reconciler import Ended, JobState, Lost, LostHosts, Running
from launch.tpu_vm.replies import Node
from train.processes.watch import LOST

# Seconds: for the first connection, with which gcloud makes and spreads its ssh keys; for a job
# to save and end, longer than it takes to kill one that does not; and for threads to end.
WARMING, SAVING, LEAVING = 180.0, GRACE + 60.0, 30.0


def hosts(place: Place, nodes: Sequence[Node]) -> list[Host]:
    """Returns the hosts of TPU VMs, slice by slice, worker by worker.

    Args:
      place: whose zone and project.
      nodes: of all slices, in their order.
    """
    return [
        _host(place, node.name, worker, address, len(node.addresses))
        for node in nodes
        for worker, address in enumerate(node.addresses)
    ]


def expected(place: Place, request: Request) -> list[Host]:
    """Returns the hosts that there will be, for a dry run; their addresses are not known yet."""
    count = request.accelerator.hosts
    return [
        _host(place, node, worker, f"address-of-{node}-{worker}", count)
        for node in place.nodes(request.slices)
        for worker in range(count)
    ]


def _host(place: Place, node: str, worker: int, address: str, count: int) -> Host:
    words = gcloud.ssh(place, node, worker, COMMAND, ALIVE)
    return Host(f"{node}/{worker}" if count > 1 else node, address, tuple(words))


def on(plan: Plan, found: Sequence[Host]) -> Plan:
    """Returns a plan on the hosts that are there now."""
    resources = dataclasses.replace(plan.job.resources, hosts=len(found))
    return dataclasses.replace(
        plan,
        job=dataclasses.replace(plan.job, resources=resources),
        hosts=tuple(found),
        coordinator=options.coordinator_at(found[0].address),
    )


class OnHosts:
    """A job on the hosts of TPU VMs; see ``reconciler.JobOnHosts``."""

    def __init__(
        self,
        place: Place,
        plan: Plan,
        logs: Logs,
        examiner: Callable[[Plan], Examine],
        beforehand: bool = True,
    ) -> None:
        """Makes it; nothing is asked yet.

        Args:
          place: where the TPU VMs are.
          plan: what runs; its hosts are those that there are at a start.
          logs: where goes what is said.
          examiner: makes what looks for what is wrong on the hosts of a plan.
          beforehand: whether it looks before a start.
        """
        self._place, self._plan, self._logs, self._examiner = place, plan, logs, examiner
        self._beforehand = beforehand
        self._fleet: Fleet | None = None
        self._thread: threading.Thread | None = None
        self._ending: Ending | None = None

    def start(self, nodes: Sequence[Node]) -> None:
        """Starts the job on all hosts of all slices, or comes back to it where it runs.

        Raises:
          LostHosts: some cannot be reached, or do not reach each other.
          UserError: a host refuses.
        """
        self.abandon()
        found = hosts(self._place, nodes)
        if any(not node.addresses for node in nodes):
            raise LostHosts("the addresses of their hosts are not known yet")
        plan = on(self._plan, found)
        fleet = Fleet(plan, self._logs, self._examiner(plan), self._beforehand)
        try:
            # By one host alone at first: gcloud makes its ssh keys there, which all at once would
            # each make.
            request = dict(action="look", root=plan.root, name=plan.name)
            ask(found[0], "jobs", WARMING, **request)
            wrong = "" if fleet.adopt() else fleet.begin()
        except Unreachable as error:
            raise LostHosts(f"{error.host.name}: {error.reason}") from error
        if wrong:
            raise LostHosts(wrong)
        self._fleet, self._ending = fleet, None
        self._thread = threading.Thread(target=self._follow, name="job on hosts", daemon=True)
        self._thread.start()

    def poll(self) -> JobState:
        """Tells how the job is."""
        assert self._fleet is not None
        if self._ending is None:
            followers = self._fleet.followers
            step = max((f.state.get("step", -1) for f in followers), default=-1)
            silent = [follower.reason for follower in followers if follower.reason]
            if silent and len(silent) == len(followers):
                return Lost(silent[0])
            return Running(step)
        ending = self._ending
        if ending.status == LOST and self._fleet.lost:
            return Lost(ending.reason)
        return Ended(ending.status, ending.reason, ending.step)

    def stop(self) -> None:
        """Has the job save and end; returns when it has, or after a time of grace."""
        if self._fleet is not None and self._thread is not None:
            self._fleet.asked.append(signal.SIGTERM)
            self._thread.join(SAVING)
        self.abandon()

    def abandon(self) -> None:
        """Lets go of the job, which may go on."""
        if self._fleet is not None and self._thread is not None:
            self._fleet.let_go()
            self._thread.join(LEAVING)
        self._thread = None

    def _follow(self) -> None:
        assert self._fleet is not None
        try:
            self._ending = self._fleet.follow()
        except UserError as error:
            self._ending = Ending(MISTAKE, str(error).rstrip("."))
