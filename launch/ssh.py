"""A run across machines that ssh reaches: they are set up, started at once, followed, stopped.

    python -m launch.ssh --hosts=a,b,c --config=configs/toy.py --workdir=/shared/run
    python -m launch.ssh list --hosts=a,b,c
    python -m launch.ssh stop --hosts=a,b,c --name=run-1f2e3d4c

This code as it is here (git's revision and what was changed since) is copied to each host, an
environment is made there once of ``requirements.lock``, and one process of ``python -m train``
(``--processes``) is started on each. What they say is shown with their names, and kept in files.
When one fails all are ended, and with ``--restarts`` started again. Ctrl-C and SIGTERM stop all
after a step that is saved, a second one at once. When the terminal is closed, or this command is
killed, the run goes on: the same command comes back to it.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import functools
import shlex
import signal
import sys
from pathlib import Path

from absl import flags

from configs import command
from configs.errors import UserError
from launch import job, supervision
from launch.doctor.examine import Examination
from launch.hosts import options
from launch.hosts import plan as plans
from launch.hosts.call import Unreachable, ask, shown
from launch.hosts.collected import KINDS, collect
from launch.hosts.everywhere import everywhere, values
from launch.hosts.finding import Finding
from launch.hosts.fleet import Fleet
from launch.hosts.host import Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan
from launch.supervision import supervise

VERBS = ("run", "list", "stop")
_ANSWER = 60.0  # seconds


def _define_flags() -> None:
    job.define_flags()
    supervision.define_flags()
    options.define_flags()
    flags.DEFINE_string("logs", "", "Folder here for what is said; by default runs/launched/NAME.")
    flags.DEFINE_bool("check", True, "Look for what is wrong on the hosts before a start.")
    flags.DEFINE_bool("detach", False, "Return once all are started.")
    flags.DEFINE_enum(
        "collect",
        "record",
        KINDS,
        "What is brought here of the run's folder at the end: its record, or saved steps too.",
    )
    flags.DEFINE_bool("now", False, "stop: kill, and save nothing.")


def main(verb: str = "run") -> None:
    """Does one of the verbs with the flags.

    Raises:
      UserError: a flag is ill-formed, or a host refuses.
    """
    hosts = options.hosts()
    if verb == "list":
        _list(hosts)
    elif verb == "stop":
        _stop(hosts)
    else:
        _run(options.plan(hosts))


def _run(plan: Plan) -> None:
    given = flags.FLAGS
    folder = Path(given.logs or Path("runs", "launched", plan.name))
    if given.dry_run:
        _show(plan, folder)
        return
    logs = Logs(folder)
    fleet = Fleet(plan, logs, functools.partial(_examine, plan) if given.check else None)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, fleet.forward)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, fleet.leave)
    if given.detach:
        _detach(fleet)
        return
    status = supervise(fleet.attempt, supervision.restarts(), lambda: fleet.saved, fleet.asked)
    _collect(plan, folder / "run")
    sys.exit(status)


def _detach(fleet: Fleet) -> None:
    """Starts the job where it does not run yet."""
    try:
        wrong = "" if fleet.adopt() else fleet.begin()
    except Unreachable as error:
        wrong = f"{error.host.name} cannot be reached ({error.reason}); see that it runs"
    if wrong:
        raise UserError(f"{wrong}.")


def _collect(plan: Plan, folder: Path) -> None:
    try:
        files = collect(plan.hosts[0], plan, folder, flags.FLAGS.collect)
    except (UserError, Unreachable) as error:
        print(f"the run's record was not brought here ({error})", file=sys.stderr)
        return
    if files:
        print(f"{files} files of {plan.job.workdir} on {plan.hosts[0].name} are in {folder}")


def _examine(plan: Plan, runs: bool) -> list[Finding]:
    return Examination(plan, devices=not runs).found


def _list(hosts: list[Host]) -> None:
    """Prints the jobs of each host."""
    request = dict(action="look", root=flags.FLAGS.root)
    if flags.FLAGS.dry_run:
        print("\n".join(shown(host, "jobs", **request) for host in hosts))
        return
    for outcome in everywhere(hosts, lambda host: ask(host, "jobs", _ANSWER, **request)):
        name = outcome.host.name
        if outcome.unreachable:
            print(f"{name}  cannot be reached ({outcome.unreachable.reason})")
        elif outcome.mistake:
            print(f"{outcome.mistake}")
        elif outcome.value:
            for called, found in outcome.value["jobs"].items():
                state = found["state"]
                how = state["state"] + (f" with {state['status']}" if "status" in state else "")
                words = " ".join([found["job"].get("config", ""), found["job"].get("workdir", "")])
                print(f"{name}  {called}  {how}, step {state.get('step', -1)}  {words}")


def _stop(hosts: list[Host]) -> None:
    """Stops a job on all hosts."""
    given = flags.FLAGS
    if not (given.name or given.workdir):
        raise UserError("--name is missing; launch.ssh list shows the names of jobs.")
    name = plans.job_name(given.name, plans.on_hosts(given.workdir or "", given.root))
    request = dict(action="stop", root=given.root, name=name, kill=given.now)
    if given.dry_run:
        print("\n".join(shown(host, "jobs", **request) for host in hosts))
        return
    try:
        found = values(everywhere(hosts, lambda host: ask(host, "jobs", _ANSWER, **request)))
    except Unreachable as error:
        raise UserError(
            f"{error.host.name} cannot be reached ({error.reason}); the others were asked."
        ) from error
    if not any(one["ran"] for one in found):
        raise UserError(f"no job {name} runs on these hosts; launch.ssh list shows those that do.")


def _show(plan: Plan, folder: Path) -> None:
    """Prints what would be run and written."""
    about = plan.snapshot.about()
    changed = ", with what was changed since" if about["changed"] else ""
    print(f"code: {len(plan.snapshot.files)} files of {about['revision']}{changed}")
    code = f"{plan.root}/code/{plan.snapshot.digest}"
    for index, host in enumerate(plan.hosts):
        print(f"on {host.name}, over: {shlex.join(host.words)}")
        print(f"  writes {code}, {plan.root}/jobs/{plan.name}")
        if plan.interpreter:
            print(f"  runs in {plan.interpreter}")
        else:
            extras = ", ".join([*plan.extras, *(["those of its devices"] if plan.auto else [])])
            print(f"  makes {plan.root}/environments/... of requirements.lock; extras: {extras}")
        share = plan.share(index)
        for process in range(share["first"], share["first"] + share["count"]):
            place = (
                f"--num_processes={share['total']} --coordinator={plan.coordinator} "
                f"--process_id={process}"
            )
            print(f"  runs {plan.job.line()} {place if share['total'] > 1 else ''}".rstrip())
    print(f"here: writes {folder}")


if __name__ == "__main__":
    command.run(main, _define_flags, verbs=VERBS, otherwise="run")
