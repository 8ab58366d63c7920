"""What the commands on TPU VMs do: ask for one, show them, delete one, watch over a run."""

import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from configs.console import tell
from configs.errors import UserError
from launch.job import Job
from launch.tpu_vm import adoption, failures, gcloud, record, replies
from launch.tpu_vm.client import Client, Here
from launch.tpu_vm.gcloud import QUICK, Request, Run
from launch.tpu_vm.place import Place, check_project
from launch.tpu_vm.reconciler import POLL, SOON, JobOnHosts, Limits
from launch.tpu_vm.replies import Node, Queued
from launch.tpu_vm.signals import Clock, Signals
from launch.tpu_vm.watch import Outcome, Watch, Work

RUN_SHOWN = "RUN"  # in place of the token that marks a run, which is drawn when it begins

# Makes the part that runs a job on the hosts of a place.
OnHosts = Callable[[Job, Place, Request], JobOnHosts]


def say(line: str) -> None:
    """Shows a line on standard error; where nobody reads any more, it is lost."""
    tell(line, sys.stderr)


def show(commands: Sequence[Sequence[str]]) -> None:
    """Prints commands, quoted for a shell."""
    for argv in commands:
        print(shlex.join(argv))


def known(place: Place, run: Run) -> Place:
    """Returns a place whose project is known: gcloud's own setting, where none is given.

    Raises:
      UserError: there is none.
    """
    return dataclasses.replace(place, project=project(place.project, run))


def project(given: str, run: Run) -> str:
    """Returns the project that is given, or that of gcloud's settings.

    Raises:
      UserError: there is none.
    """
    if given:
        return given
    reply = run(gcloud.current_project(), QUICK)
    found = reply.out.strip()
    if reply.status or not found or found == "(unset)":
        raise UserError("--project is missing, and gcloud has none set; name one.")
    check_project(found)
    return found


def ready(place: Place, slices: int, run: Run) -> list[Node]:
    """Returns the TPU VMs of a name, whoever made them, where all are ready.

    Raises:
      UserError: they are not, or cannot be asked for.
    """
    place = known(place, run)
    here = Client(place, run).look(slices)
    if not isinstance(here, Here):
        raise UserError(here.sentence)
    if here.queued is not None and here.queued.nodes != slices:
        raise UserError(
            f"{place.name} has {here.queued.nodes} slices, not {slices}; give --slices="
            f"{here.queued.nodes}."
        )
    names = place.nodes(slices)
    missing = [name for name in names if name not in here.nodes]
    if missing or any(node.state != "READY" for node in here.nodes.values()):
        raise UserError(
            f"{place.name} is not ready ({adoption.states(here)}); see list, and wait, or ask for "
            "it with create."
        )
    return [here.nodes[name] for name in names]


def create(place: Place, request: Request, wait: bool, run: Run, clock: Clock) -> None:
    """Asks for TPU VMs; with ``wait`` returns when they are ready.

    Raises:
      UserError: Google Cloud refuses, or they failed, and are deleted then.
    """
    place = known(place, run)
    client, shelf = Client(place, run), record.disk(place)
    with shelf.held():
        before = shelf.read()
        asked = dataclasses.replace(before or record.new(place, request.slices))
        asked.slices, asked.asked, asked.unsure = request.slices, clock.now(), True
        shelf.write(asked)  # before it is asked for, so that it is not forgotten
        failure = client.create(request, asked.run)
        asked.unsure = failure is not None
        if failure is None or failure.unsure:
            shelf.write(asked)
        elif before is not None:
            shelf.write(before)
        else:
            shelf.delete()
        if failure is not None and failure.unsure:
            raise UserError(f"{failure.sentence.rstrip('.')}; list shows whether it was made.")
        if failure is not None:
            raise UserError(failure.sentence)
        say(f"{place.name} is in the queue; list shows its state, and delete takes it out.")
        if wait and (dead := _wait(client, request.slices, clock)):
            left = Watch(client, shelf, asked, clock, say).give_back()
            raise UserError(f"{dead}; {left or 'it is deleted'}.")


def _wait(client: Client, slices: int, clock: Clock) -> str:
    """Shows states until all is ready; returns why it will not be."""
    name, shown, seen = client.place.name, "", False
    while True:
        here = client.look(slices)
        line = adoption.states(here) if isinstance(here, Here) else here.sentence
        if line != shown:
            say(f"{name} {line}")
            shown = line
        if isinstance(here, Here) and here.queued is None and seen:
            return f"{name} was deleted meanwhile"
        if isinstance(here, Here) and here.queued is not None:
            seen = True
            state, nodes = here.queued.state, here.nodes.values()
            if (
                state == "ACTIVE"
                and len(nodes) == slices
                and all(node.state == "READY" for node in nodes)
            ):
                return ""
            if state in ("FAILED", "SUSPENDED"):
                reason = here.queued.reason
                return f"{name} is {state}" + (f" ({reason.rstrip('.')})" if reason else "")
        clock.sleep(POLL if isinstance(here, Here) else SOON, ())


def delete(place: Place, run: Run, clock: Clock) -> int:
    """Deletes what has the name, whoever made it; returns the exit status, 0 when it is gone.

    Raises:
      UserError: something may be left.
    """
    place = known(place, run)
    client, shelf = Client(place, run), record.disk(place)
    with shelf.held():
        found = shelf.read() or record.new(place, 1)
        signals = Signals()
        watching = Watch(client, shelf, found, clock, say, signals.asked)
        with signals.noted(watching.left):
            left = watching.give_back()
    if left:
        raise UserError(f"{left}.")
    return 128 + signals.asked[0] if signals.asked else 0


def delete_commands(place: Place) -> list[list[str]]:
    """Returns the commands of ``delete``: the second is for a TPU VM without a queued resource."""
    return [gcloud.describe(place), gcloud.delete(place), gcloud.delete_node(place, place.name)]


def watch(
    place: Place,
    request: Request,
    limits: Limits,
    job: Job,
    on_hosts: OnHosts,
    keep: bool,
    run: Run,
    clock: Clock,
    take_over: bool = False,
) -> Outcome:
    """Keeps a job on TPU VMs until it is finished; returns how it ended.

    Raises:
      UserError: a flag is wrong, or another command looks after the same name.
    """
    check_workdir(job)
    place = known(place, run)
    shelf = record.disk(place)
    with shelf.held():
        kept = shelf.read() or record.new(place, request.slices)
        if kept.slices != request.slices:
            raise UserError(
                f"--slices={request.slices} is not what {place.name} was asked for with, "
                f"{kept.slices}; delete it first, or choose another --name."
            )
        signals = Signals()
        work = Work(request, limits, on_hosts(job, place, request), take_over)
        watching = Watch(
            Client(place, run), shelf, kept, clock, say, signals.asked, work, keep=keep
        )
        with signals.noted(watching.left):
            return watching.run()


def watch_commands(place: Place, request: Request, keep: bool) -> list[list[str]]:
    """Returns the commands of ``watch`` on the cloud, in their order; they are repeated."""
    return [
        gcloud.describe(place),
        gcloud.create(place, request, RUN_SHOWN),
        *(gcloud.describe_node(place, node) for node in place.nodes(request.slices)),
        *([] if keep else [gcloud.delete(place)]),
    ]


def check_workdir(job: Job) -> None:
    """Checks that a run's folder outlives its hosts, and is the same on all of them.

    Raises:
      UserError: it is on a host's own disk.
    """
    if not re.match(r"(gs|s3)://|/", job.workdir):
        given = f"--workdir={job.workdir} is" if job.workdir else "without --workdir a run is"
        raise UserError(
            f"{given} on the TPU VM's own disk, which goes when it does; name a bucket, as "
            "gs://bucket/run, or a disk that all hosts mount, as /mnt/disk/run."
        )


def show_list(zone: str, given: str, everybody: bool, run: Run, clock: Clock) -> None:
    """Prints a table of resources: those with our label or a record here, or all.

    Raises:
      UserError: they cannot be told.
    """
    in_project = project(given, run)
    place = zone or gcloud.EVERYWHERE
    queued = _listed(gcloud.list_queued(place, in_project), replies.all_queued, run)
    nodes = _listed(gcloud.list_nodes(place, in_project), replies.all_nodes, run)
    kept = {(each.name, each.zone): each for each in record.all_records(in_project, zone)}
    table = Table("name", "zone", "type", "tier", "state", "age", "whose", box=box.SIMPLE_HEAD)
    there = set()
    for each in (*queued, *nodes):
        if isinstance(each, Node) and each.queued:
            continue  # it is shown with its queued resource
        owner = kept.get((each.name, each.zone))
        here = owner is not None and owner.owns(each)
        ours = here or replies.token(each)
        there.add((each.name, each.zone))
        if not ours and not everybody:
            continue
        whose = "this machine" if here else "manyheads" if ours else "other"
        table.add_row(
            each.name,
            each.zone,
            _type(each),
            "spot" if isinstance(each, Queued) and each.spot else "",
            _state(each, nodes),
            _age(clock.now() - replies.seconds(each.created)),
            whose,
        )
    for name, where in sorted(set(kept) - there):
        table.add_row(name, where, "", "", "not there", "", "this machine")
    if not table.row_count:
        print("none" if everybody else "none of ours; --all shows those of others")
        return
    Console(width=120 if not sys.stdout.isatty() else None).print(table)


def _listed(
    argv: list[str], read: Callable[[str], Sequence[Queued | Node]], run: Run
) -> Sequence[Queued | Node]:
    reply = run(argv, QUICK)
    failure = failures.of_reply(reply)
    if failure is not None:
        raise UserError(failure.sentence)
    try:
        return read(reply.out)
    except replies.Unreadable as error:
        raise UserError(f"{error}; see {shlex.join(argv)}.") from error


def _type(found: Queued | Node) -> str:
    many = found.nodes if isinstance(found, Queued) else 1
    return f"{many} x {found.accelerator}" if many > 1 else found.accelerator


def _state(found: Queued | Node, nodes: Sequence[Queued | Node]) -> str:
    if isinstance(found, Node):
        return found.state
    own = [n.state for n in nodes if isinstance(n, Node) and n.queued == found.name]
    odd = sorted({state for state in own if state != "READY"})
    return ", ".join([found.state, *(f"node {state}" for state in odd)])


def _age(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
