"""Asks for a TPU VM, runs a command on all its workers, watches over a run, gives it back.

    python -m launch.tpu_vm create --name=heads --zone=us-west4-a --type=v5litepod-8 --spot --wait
    python -m launch.tpu_vm run --name=heads --zone=us-west4-a --command="python -m train
      --config=configs/gpt3.py:125m --workdir=runs/125m"
    python -m launch.tpu_vm list --zone=us-west4-a
    python -m launch.tpu_vm delete --name=heads --zone=us-west4-a

``--dry_run`` prints the commands, quoted for a shell, and runs none. ``create`` files a queued
resource, which may wait for hours; with ``--wait`` its states are shown until it is ACTIVE.
``run`` copies this clone to every worker, installs it there with the ``tpu`` extra at the locked
versions and starts the command on all workers at once, as one JAX program needs; ``--detach`` lets
it outlive the connection. ``list`` shows what was asked for from here, and what else has this
project's label; ``--all`` shows others' too. ``delete`` returns when what has the name is seen to
be gone.

On a slice of several hosts the processes find each other; their workdir has to lie on a disk that
all hosts share.

Limits: the Cloud TPU API, which has no TPU newer than v6e.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import math
import sys
import tempfile

from absl import flags

from configs import command
from configs.errors import UserError
from launch import job
from launch.tpu_vm import copying, gcloud, verbs
from launch.tpu_vm.accelerators import accelerator
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.place import check_project, check_zone, place
from launch.tpu_vm.reconciler import Limits
from launch.tpu_vm.signals import Clock, RealClock

VERBS = ("create", "run", "list", "delete")

# Flags that only some verbs take.
OWNERS = {
    **dict.fromkeys(
        ("type", "topology", "version", "spot", "reserved", "reservation", "slices", "valid_until"),
        ("create", "watch"),
    ),
    "wait": ("create",),
    **dict.fromkeys(("command", "detach"), ("run",)),
    "all": ("list",),
    **dict.fromkeys(
        ("hours", "attempts", "restarts", "keep", "config", "workdir", "env"), ("watch",)
    ),
}


def define_flags() -> None:
    """Defines the flags."""
    job.define_flags()
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
    flags.DEFINE_string("command", "", "run: the shell line to run on every worker.")
    flags.DEFINE_bool("detach", False, "run: go on when the connection ends.")
    flags.DEFINE_bool("all", False, "list: also what is not ours.")
    flags.DEFINE_float("hours", None, "watch: hours for which TPUs may be held, in all.", 0.0)
    flags.DEFINE_integer("attempts", None, "watch: times that TPUs may be asked for, in all.", 1)
    flags.DEFINE_integer("restarts", 3, "watch: crashes in a row without a new step.", 0)
    flags.DEFINE_bool("keep", False, "watch: delete nothing at the end.")


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


def main(verb: str, on_hosts: verbs.OnHosts | None = None, clock: Clock | None = None) -> None:
    """Runs one of the verbs with the flags.

    Args:
      verb: what to do.
      on_hosts: makes the part that runs a job on hosts, which ``watch`` needs.
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
    if verb == "run":
        with tempfile.TemporaryDirectory() as folder:
            archive = "manyheads.tar.gz" if given.dry_run else f"{folder}/manyheads.tar.gz"
            commands = copying.run_commands(
                given.name,
                given.zone,
                given.command,
                archive,
                project=given.project,
                detach=given.detach,
            )
            if given.dry_run:
                verbs.show(commands)
            else:
                copying.execute(commands)
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
        assert on_hosts is not None
        _watch(where, on_hosts, clock)


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


def _watch(where: verbs.Place, on_hosts: verbs.OnHosts, clock: Clock) -> None:
    given = flags.FLAGS
    request = request_of_flags()
    resources = job.Resources(request.hosts, 1, request.accelerator.name, request.tier == "spot")
    described = job.of_flags(resources)
    limits = Limits(
        math.inf if given.hours is None else given.hours,
        math.inf if given.attempts is None else given.attempts,
        given.restarts,
    )
    if given.dry_run:
        verbs.check_workdir(described)
        print(described.line())
        verbs.show(verbs.watch_commands(where, request, given.keep))
        return
    outcome = verbs.watch(
        where, request, limits, described, on_hosts, given.keep, gcloud.run, clock
    )
    for sentence in (outcome.why, outcome.left):
        if sentence and outcome.status:
            verbs.say(f"error: {sentence}.")
    sys.exit(outcome.status)


if __name__ == "__main__":
    command.run(main, define_flags, verbs=VERBS)
