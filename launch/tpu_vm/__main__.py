"""Asks for TPU VMs, runs a job on all their hosts, watches over it, gives them back.

    python -m launch.tpu_vm create --name=heads --zone=us-west4-a --type=v5litepod-8 --spot --wait
    python -m launch.tpu_vm run --name=heads --zone=us-west4-a
      --config=configs/gpt3.py:125m --workdir=gs://bucket/125m
    python -m launch.tpu_vm logs --name=heads --zone=us-west4-a
    python -m launch.tpu_vm stop --name=heads --zone=us-west4-a
    python -m launch.tpu_vm list --zone=us-west4-a
    python -m launch.tpu_vm delete --name=heads --zone=us-west4-a

    python -m launch.tpu_vm watch --name=heads --zone=us-west4-a --type=v5litepod-16 --spot
      --hours=24 --config=configs/gpt3.py:125m --workdir=gs://bucket/125m

``create`` files a queued resource, which may wait for hours; with ``--wait`` its states are shown
until it is ACTIVE. ``run`` copies this code to all hosts of a TPU VM, or of several slices, whoever
made them, sets up the environment there, and starts one process on each at once; when it is called
again it comes back to the job. ``list`` shows what was asked for from here, and what else has this
project's label; ``--all`` shows others' too. ``delete`` returns when what has the name is seen to
be gone. ``watch`` does all that: it asks for TPU VMs, runs the job, and when they are taken away
asks again, and the run goes on from its checkpoint; within ``--hours`` and ``--attempts``. Whatever
ends it, what it asked for or took over is deleted and seen to be gone, unless ``--keep``.

``--dry_run`` prints the commands, quoted for a shell, and runs none. On several hosts the workdir
has to be one that all share, such as a bucket's folder.

Limits: the Cloud TPU API, which has no TPU newer than v6e.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
import math
import sys
from collections.abc import Sequence

from absl import flags

from configs import command
from configs.errors import UserError
from launch import job, jobs_on_hosts, supervision
from launch.hosts import options
from launch.hosts.host import Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan
from launch.job import Job
from launch.tpu_vm import gcloud, on_hosts, verbs
from launch.tpu_vm.accelerators import accelerator
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.place import Place, check_project, check_zone, place
from launch.tpu_vm.reconciler import Limits
from launch.tpu_vm.signals import Clock, RealClock

VERBS = ("create", "run", "logs", "stop", "list", "delete", "watch")

ONE_HOST = "v5litepod-8"

# Flags that only some verbs take.
OWNERS = {
    **dict.fromkeys(
        ("version", "spot", "reserved", "reservation", "valid_until"), ("create", "watch")
    ),
    **dict.fromkeys(("type", "topology", "slices"), ("create", "watch", "run", "logs", "stop")),
    "wait": ("create",),
    "all": ("list",),
    **dict.fromkeys(("config", "workdir", "env", "restarts", "check"), ("run", "watch")),
    **dict.fromkeys(("backoff", "backoff_max", "detach", "collect"), ("run",)),
    **dict.fromkeys(("hours", "attempts", "keep", "take_over"), ("watch",)),
    "now": ("stop",),
}


def define_flags() -> None:
    """Defines the flags."""
    job.define_flags()
    supervision.define_flags()
    options.define_flags()
    jobs_on_hosts.define_flags()
    flags.DEFINE_string("name", "", "Name of the TPU VM.")
    flags.DEFINE_string("zone", "", "Zone, for example us-west4-a; list shows all where none is.")
    flags.DEFINE_string("project", "", "Google Cloud project; by default gcloud's own setting.")
    flags.DEFINE_string("type", "", "Generation and size, for example v5litepod-8.")
    flags.DEFINE_string("topology", "", "Chips along each axis, for example 2x2x4.")
    flags.DEFINE_integer("slices", 1, "How many slices, joined by the network.", 1, 256)
    flags.DEFINE_string("version", "", "Runtime image; by default the one for JAX.")
    flags.DEFINE_bool("spot", False, "Cheaper, and may be taken away.")
    flags.DEFINE_bool("reserved", False, "Of the project's reservation.")
    flags.DEFINE_string("reservation", "", "Of this reservation; through gcloud alpha.")
    flags.DEFINE_string("valid_until", "", "Longest wait in the queue, for example 6h.")
    flags.DEFINE_bool("wait", False, "create: show the states until all is ready.")
    flags.DEFINE_bool("all", False, "list: also what is not ours.")
    flags.DEFINE_float("hours", None, "watch: hours for which TPUs may be held, in all.", 0.0)
    flags.DEFINE_integer(
        "attempts",
        None,
        "watch: times that TPUs may be had, in all; refusals for lack of room are not counted.",
        1,
    )
    flags.DEFINE_bool("keep", False, "watch: delete nothing at the end.")
    flags.DEFINE_bool("take_over", False, "watch: also what another run has asked for.")


def request_of_flags() -> Request:
    """Returns what the flags ask for.

    Raises:
      UserError: a flag is missing, ill-formed, or goes not with another.
    """
    given = flags.FLAGS
    if given.spot + given.reserved + bool(given.reservation) > 1:
        raise UserError("--spot, --reserved and --reservation exclude each other; give one.")
    tier = "spot" if given.spot else "reserved" if given.reserved else "on-demand"
    request = Request(
        accelerator(given.type, given.topology, given.slices),
        given.slices,
        tier,
        given.reservation,
        given.version,
        given.valid_until,
    )
    gcloud.check_request(request)
    return request


def main(verb: str, make: verbs.OnHosts | None = None, clock: Clock | None = None) -> None:
    """Runs one of the verbs with the flags.

    Args:
      verb: what to do.
      make: makes the part that runs a job on hosts; by gcloud's ssh where None.
      clock: the one on the wall where None.

    Raises:
      UserError: a flag is missing or ill-formed, or a command failed.
    """
    given, clock = flags.FLAGS, clock or RealClock()
    for name, owners in OWNERS.items():
        if given[name].present and verb not in owners:
            raise UserError(
                f"--{name} is for {' and '.join(owners)}, not for {verb}; leave it out."
            )
    if verb == "list":
        _list(clock)
        return
    where = place(given.name, given.zone, given.project, given.slices)
    if verb in ("run", "logs", "stop"):
        _on_hosts(verb, where)
    elif verb == "delete":
        if given.dry_run:
            verbs.show(verbs.delete_commands(where))
        else:
            sys.exit(verbs.delete(where, gcloud.run, clock))
    elif verb == "create":
        request = request_of_flags()
        if request.hosts > 1:
            print(
                "note: this slice has several hosts, whose --workdir must lie on a disk that "
                "all of them share, such as Filestore or Cloud Storage FUSE.",
                file=sys.stderr,
            )
        if given.dry_run:
            verbs.show([gcloud.create(where, request, verbs.RUN_SHOWN)])
        else:
            verbs.create(where, request, given.wait, gcloud.run, clock)
    else:
        _watch(where, make or _job_on_hosts, clock)


def _list(clock: Clock) -> None:
    given = flags.FLAGS
    if given.zone:
        check_zone(given.zone)
    if given.project:
        check_project(given.project)
    if given.name:
        raise UserError("--name is not for list, which shows all; leave it out.")
    if given.dry_run:
        zone = given.zone or gcloud.EVERYWHERE
        verbs.show(
            [gcloud.list_queued(zone, given.project), gcloud.list_nodes(zone, given.project)]
        )
    else:
        verbs.show_list(given.zone, given.project, given.all, gcloud.run, clock)


def _on_hosts(verb: str, where: Place) -> None:
    """Runs, shows or stops a job on TPU VMs that are there."""
    given = flags.FLAGS
    if given.dry_run:
        found = on_hosts.expected(where, _shape())
    else:
        found = on_hosts.hosts(where, verbs.ready(where, given.slices, gcloud.run))
    if verb == "run":
        jobs_on_hosts.run(options.plan(found, where.name))
    elif verb == "logs":
        jobs_on_hosts.logs(found, where.name)
    else:
        jobs_on_hosts.stop(found, where.name)


def _shape() -> Request:
    """Returns what is there as far as the flags say, for a dry run, which asks nobody."""
    given = flags.FLAGS
    if not given.type:
        print("as if each slice had one host, since a dry run asks nobody; --type says what it is:")
    type_ = given.type or ONE_HOST
    return Request(accelerator(type_, given.topology, given.slices), given.slices)


def _job_on_hosts(described: Job, where: Place, request: Request) -> on_hosts.OnHosts:
    """Returns a job as gcloud's ssh runs it."""
    plan = _plan(described, on_hosts.expected(where, request), where)
    logs = Logs(jobs_on_hosts.kept(plan.name))
    return on_hosts.OnHosts(where, plan, logs, jobs_on_hosts.examiner, flags.FLAGS.check)


def _plan(described: Job, found: Sequence[Host], where: Place) -> Plan:
    """Returns the plan of a watched job: the code as it is now, and hangs looked for."""
    plan = options.plan(found, where.name)
    given: float | None = flags.FLAGS.stall
    resources = dataclasses.replace(described.resources, hosts=len(found))
    stall = supervision.STALL if given is None else given
    own = dataclasses.replace(plan.job, resources=resources)
    return dataclasses.replace(plan, job=own, stall=stall)


def _watch(where: Place, make: verbs.OnHosts, clock: Clock) -> None:
    given = flags.FLAGS
    request = request_of_flags()
    resources = job.Resources(request.hosts, 1, request.accelerator.name, request.tier == "spot")
    described = job.of_flags(resources)
    crashes = given.restarts if given["restarts"].present else Limits().crashes
    limits = Limits(
        math.inf if given.hours is None else given.hours,
        math.inf if given.attempts is None else given.attempts,
        crashes,
    )
    if given.dry_run:
        verbs.check_workdir(described)
        verbs.show(verbs.watch_commands(where, request, given.keep))
        jobs_on_hosts.show(_plan(described, on_hosts.expected(where, request), where))
        return
    outcome = verbs.watch(
        where,
        request,
        limits,
        described,
        make,
        given.keep,
        gcloud.run,
        clock,
        take_over=given.take_over,
    )
    for sentence in (outcome.why, outcome.left):
        if sentence and outcome.status:
            verbs.say(f"error: {sentence}.")
    sys.exit(outcome.status)


if __name__ == "__main__":
    command.run(main, define_flags, verbs=VERBS)
