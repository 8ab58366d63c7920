"""What a launcher does with jobs on hosts, however they are reached: run, list, show, stop."""

import functools
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.errors import UserError
from configs.folders import folder
from launch import job, supervision
from launch.examination.examine import Examination
from launch.hosts import options, snapshot
from launch.hosts.call import Unreachable, ask, shown
from launch.hosts.collected import KINDS, collect
from launch.hosts.everywhere import everywhere, values
from launch.hosts.finding import Finding
from launch.hosts.fleet import Examine, Fleet
from launch.hosts.host import Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan
from launch.hosts.remote import prepare
from launch.supervision import supervise

flags.disclaim_key_flags()

_ANSWER = 60.0  # seconds


def define_flags() -> None:
    """Defines the flags of these verbs."""
    flags.DEFINE_string("logs", "", "Folder here for what is said; by default runs/launched/NAME.")
    flags.DEFINE_bool("check", True, "Look for what is wrong on the hosts before a start.")
    flags.DEFINE_bool("detach", False, "run: return once all are started.")
    flags.DEFINE_enum(
        "collect",
        "record",
        KINDS,
        "run: what is brought here of the run's folder at the end: its record, or all.",
    )
    flags.DEFINE_bool("now", False, "stop: kill, and save nothing.")


def run(plan: Plan) -> None:
    """Runs a job to its end and exits with its status, or comes back to one that runs.

    Raises:
      UserError: a host refuses, or something there keeps the run from starting.
    """
    given = flags.FLAGS
    if given.dry_run:
        show(plan)
        return
    here = kept(plan.name)
    fleet = Fleet(plan, Logs(here), examiner(plan), given.check)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, fleet.forward)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, fleet.leave)
    if given.detach:
        _detach(fleet)
        return
    status = supervise(fleet.attempt, supervision.restarts(), lambda: fleet.saved, fleet.asked)
    if fleet.followers:  # it was started, some time
        _collect(plan, here / "run")
    sys.exit(status)


def _detach(fleet: Fleet) -> None:
    """Starts the job where it does not run yet."""
    try:
        wrong = "" if fleet.adopt() else fleet.begin()
    except Unreachable as error:
        wrong = f"{error.host.name} cannot be reached ({error.reason}); see that it runs"
    if wrong:
        raise UserError(f"{wrong}.")


def _collect(plan: Plan, here: Path) -> None:
    try:
        files = collect(plan.hosts[0], plan, here, flags.FLAGS.collect)
    except (UserError, Unreachable) as error:
        print(f"the run's record was not brought here ({error})", file=sys.stderr)
        return
    if files:
        print(f"{files} files of {plan.job.workdir} on {plan.hosts[0].name} are in {here}")


def examiner(plan: Plan) -> Examine:
    """Returns what looks for what is wrong on the hosts of a plan."""
    return functools.partial(_examine, plan)


def _examine(plan: Plan, runs: bool) -> list[Finding]:
    return Examination(plan, devices=not runs).found


def list_jobs(hosts: Sequence[Host]) -> None:
    """Prints the jobs of each host; exits with 1 where one does not answer."""
    request = dict(action="look", root=options.root())
    if flags.FLAGS.dry_run:
        print("\n".join(shown(host, "jobs", **request) for host in hosts))
        return
    table = Table("host", "job", "state", "step", "config", "workdir", box=box.SIMPLE)
    wrong = []
    for outcome in everywhere(hosts, lambda host: ask(host, "jobs", _ANSWER, **request)):
        if outcome.value is None:
            why = outcome.mistake or f"cannot be reached ({outcome.unreachable})"
            wrong.append(str(why) if outcome.mistake else f"{outcome.host.name} {why}")
            continue
        for name, found in outcome.value["jobs"].items():
            state, job_ = found["state"], found["job"]
            how = f"ended with {state['status']}" if "status" in state else state["state"]
            step = "" if state.get("step", -1) < 0 else str(state["step"])
            about = [job_.get("config", ""), job_.get("workdir", "")]
            table.add_row(*map(escape, (outcome.host.name, name, how, step, *about)))
    if table.row_count:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    elif not wrong:
        print("no jobs on these hosts")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)


def stop(hosts: Sequence[Host], name: str) -> None:
    """Has a job save and end on all hosts, or kills it with ``--now``.

    Raises:
      UserError: none such runs there, or a host cannot be reached.
    """
    given = flags.FLAGS
    request = dict(action="stop", root=options.root(), name=name, kill=given.now, wanted=True)
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
        raise UserError(f"no job {name} runs on these hosts; list shows those that do.")
    how = "was killed" if given.now else "is asked to save and end"
    print(f"{name} {how}; list shows when it has ended")


def logs(hosts: Sequence[Host], name: str) -> None:
    """Shows what a job has said and says, until it ends; Ctrl-C leaves it as it is.

    Raises:
      UserError: none such ran there, or a host cannot be reached.
    """
    given = flags.FLAGS
    request = dict(action="look", root=options.root(), name=name)
    if given.dry_run:
        print("\n".join(shown(host, "jobs", **request) for host in hosts))
        print("\n".join(shown(host, "follow", root=options.root(), name=name) for host in hosts))
        return
    plan = Plan(job.Job("", ""), name, tuple(hosts), snapshot.NONE, root=options.root())
    try:
        fleet = Fleet(plan, Logs(kept(name)))
        if not fleet.adopt(any_job=True):
            raise UserError(f"no job {name} ran on these hosts; list shows those that did.")
    except Unreachable as error:
        raise UserError(
            f"{error.host.name} cannot be reached ({error.reason}); see that it runs."
        ) from error
    ending = fleet.follow()
    print(ending.reason or f"the job ended with exit status {ending.status}", file=sys.stderr)


def show(plan: Plan) -> None:
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
            made = f"{plan.root}/environments/DIGEST"
            wanted = prepare.requirements(str(plan.snapshot.root), plan.extras)
            for words in prepare.set_up(plan.python or "python3", made, code, wanted):
                print(f"  once, runs {shlex.join(words)}")
            if plan.auto:
                print("  and installs so what setup.cfg's extra of its devices needs")
        share = plan.share(index)
        for process in range(share["first"], share["first"] + share["count"]):
            place = (
                f"--num_processes={share['total']} --coordinator={plan.coordinator} "
                f"--process_id={process}"
            )
            print(f"  runs {plan.job.line()} {place if share['total'] > 1 else ''}".rstrip())
    print(f"here: writes {kept(plan.name)}")


def kept(name: str) -> Path:
    """Returns the folder here of what the hosts of a job say, and of its record."""
    return folder(flags.FLAGS.logs or str(Path("runs", "launched", name)), "--logs")
