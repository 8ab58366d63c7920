"""A job on the hosts of TPU VMs, which gcloud's ssh reaches; the watch starts and follows it."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Sequence

from configs.errors import UserError
from launch.group import GRACE
from launch.hosts import options
from launch.hosts.call import Unreachable, ask
from launch.hosts.fleet import Examine, Fleet, Occupied
from launch.hosts.host import ALIVE, COMMAND, Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan
from launch.supervision import MISTAKE, Ending
from launch.tpu_vm import gcloud
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.place import Place
from launch.tpu_vm.reconciler import (
    Ended,
    JobState,
    Lost,
    LostHosts,
    OtherJob,
    Running,
    Starting,
)
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
        launcher="launch.tpu_vm",
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
        self._outcome: Ending | Lost | OtherJob | None = None

    def start(self, nodes: Sequence[Node]) -> None:
        """Begins to start the job on all hosts of all slices, or to come back to it there.

        Raises:
          LostHosts: the addresses of hosts are not known yet.
        """
        self.abandon()
        if any(not node.addresses for node in nodes):
            raise LostHosts("the addresses of their hosts are not known yet")
        plan = on(self._plan, hosts(self._place, nodes))
        fleet = Fleet(plan, self._logs, self._examiner(plan), self._beforehand)
        self._fleet, self._outcome = fleet, None
        self._thread = threading.Thread(
            target=self._run, args=(fleet, plan), name="job on hosts", daemon=True
        )
        self._thread.start()

    def poll(self) -> JobState:
        """Tells how the job is.

        Raises:
          OtherJob: another runs there, or another launcher has taken this one.
        """
        fleet, outcome = self._fleet, self._outcome
        assert fleet is not None
        if isinstance(outcome, OtherJob):
            raise outcome
        if isinstance(outcome, Lost):
            return outcome
        if outcome is not None:
            return Ended(outcome.status, outcome.reason, outcome.step, outcome.wanted)
        if not fleet.started:
            return Starting()
        step = max((f.state.get("step", -1) for f in fleet.followers), default=-1)
        silent = [follower.reason for follower in fleet.followers if follower.reason]
        if silent and len(silent) == len(fleet.followers):
            return Lost(silent[0])
        return Running(step)

    def stop(self) -> None:
        """Has the job save and end; returns when it has, or after a time of grace."""
        if self._fleet is not None and self._thread is not None:
            if not self._fleet.started:
                self._fleet.let_go()
            self._fleet.asked.append(signal.SIGTERM)
            self._thread.join(SAVING)
        self.abandon()

    def abandon(self) -> None:
        """Lets go of the job, which may go on; what is not started yet will not be."""
        if self._fleet is not None and self._thread is not None:
            self._fleet.let_go()
            self._thread.join(LEAVING)
        self._thread = None

    def _run(self, fleet: Fleet, plan: Plan) -> None:
        """Starts the job and follows it to its end."""
        outcome: Ending | Lost | OtherJob
        try:
            # By one host alone at first: gcloud makes its ssh keys there, which all at once would
            # each make.
            ask(plan.hosts[0], "jobs", WARMING, action="look", root=plan.root, name=plan.name)
            wrong = "" if fleet.adopt() else fleet.begin()
            outcome = Lost(wrong) if wrong else fleet.follow()
            if fleet.taken:
                outcome = OtherJob("another launcher has taken the job")
            elif fleet.lost and isinstance(outcome, Ending) and outcome.status == LOST:
                outcome = Lost(outcome.reason)
        except Unreachable as error:
            outcome = Lost(f"{error.host.name}: {error.reason}")
        except Occupied as error:
            outcome = OtherJob(str(error))
        except UserError as error:
            outcome = Ending(MISTAKE, str(error).rstrip("."))
        except Exception as error:  # whatever it is, the watch has to hear of it
            outcome = Ending(1, f"following the job failed ({type(error).__name__}: {error})")
        self._outcome = outcome
