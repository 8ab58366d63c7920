"""What a run does, judged from what its files say, and how it gets on.

Clocks: a run's own times are by the clock of process 0's host. Where that is this machine, they are
compared as they are. Elsewhere an age is the larger of two: what the two clocks say, which are
taken to agree but for seconds, and how long this program has looked and seen no new sign; once it
has seen one, the second alone counts, so that clocks that disagree matter no more.
"""

import collections
import dataclasses
import signal
import statistics
from typing import Any

from launch.status import loose
from launch.status.found import Found, Process, Session
from train import alive, heartbeat
from train.processes.whereabouts import is_dead, is_here, is_stopped
from train.progress import clock

RUNNING, SILENT, FAILED, STOPPED, FINISHED, NOT_BEGUN, UNKNOWN = (
    *("running", "silent", "failed", "stopped", "finished", "not begun", "unknown"),
)
OVERDUE = 3.5  # times the seconds between two writings, after which a run is silent
QUIET = 10.0  # seconds without a sign, of which one comes every 2 s, after which a process is named
STILL = 120.0  # seconds without a finished step that are worth a word
COMING = 60.0  # seconds that a run may take from its lock to its first sign
SKEW = 900.0  # seconds that two clocks may differ by, where that is to be looked into


class Age:
    """How old the last sign of a run is."""

    def __init__(self) -> None:
        self._key: tuple[str, int] | None = None
        self._since, self._has_changed = 0.0, False

    def seconds(self, session: Session, now: float, passed: float) -> float:
        """Returns the age of what alive.json says.

        Args:
          session: what it says.
          now: seconds since 1970, by this machine's clock.
          passed: of a clock that only goes forward, as ``time.monotonic``.
        """
        if session.key != self._key:
            self._has_changed = self._key is not None
            self._key, self._since = session.key, passed
        unchanged = passed - self._since
        return unchanged if self._has_changed else max(unchanged, now - session.written)


@dataclasses.dataclass
class Report:
    """What is told of a run; what is not known is None or empty."""

    workdir: str
    state: str = UNKNOWN
    doing: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None  # nats a token
    held_out: float | None = None
    tokens_per_second: float | None = None  # median of the last rows
    processes: int | None = None
    hosts: int | None = None
    saved_step: int | None = None
    saved_seconds: float | None = None  # ago
    left_seconds: float | None = None
    sign_seconds: float | None = None  # since its last sign
    silent: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    slowest: dict[str, Any] | None = None
    accidents: dict[str, int] = dataclasses.field(default_factory=dict)
    sessions: int | None = None  # starts on record, with this one
    notes: list[str] = dataclasses.field(default_factory=list)
    # Whether a second look, after a while, may find that only clocks disagree.
    doubtful: bool = dataclasses.field(default=False, repr=False)

    def figures(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {n: value for n, value in dataclasses.asdict(self).items() if n != "doubtful"}


def judge(workdir: str, found: Found, age: Age, now: float, passed: float) -> Report:
    """Returns what is told of a run.

    Args:
      workdir: as it is shown.
      found: what its files say.
      age: of its signs, which remembers the last look.
      now: seconds since 1970, by this machine's clock.
      passed: of a clock that only goes forward.
    """
    report = Report(workdir, loss=found.loss, held_out=found.held_out, accidents=found.accidents)
    report.tokens_per_second = found.tokens_per_second
    session = found.session
    seconds = None if session is None else max(0.0, age.seconds(session, now, passed))
    speaks = _state(report, found, seconds, now)
    saved = found.saved.step if found.saved else None
    taken = [step for step in (session.step if session else None, found.step) if step is not None]
    report.step = max(taken) if taken else saved
    report.steps = session.steps if session and session.steps is not None else found.steps
    if session is not None:
        report.sessions = 1 + len(session.earlier)
    if found.saved is not None:
        report.saved_step = found.saved.step
        if found.saved.time is not None:
            report.saved_seconds = max(0.0, now - found.saved.time)
    if report.state == RUNNING:
        _left(report, found)
    if speaks and session is not None and seconds is not None:
        report.processes = len(session.processes) or None
        report.hosts = len({process.host for process in session.processes if process.host}) or None
        if report.state in (RUNNING, SILENT):
            report.sign_seconds = seconds
            _silent(report, session, seconds, now)
        still = session.still + seconds
        if (report.state, report.doing) == (RUNNING, heartbeat.TRAINING) and still > STILL:
            report.notes.append(f"no step has been finished for {clock(still)}")
    if speaks:
        _slowest(report, found)
    _records(report, found)
    report.notes += found.troubles
    return report


def _state(report: Report, found: Found, seconds: float | None, now: float) -> bool:
    """Finds out whether it runs, and if not, how it ended.

    Returns:
      Whether alive.json is of the session that this is about, rather than of one before.
    """
    session, holder = found.session, found.holder
    first = session.processes[0] if session and session.processes else None
    runs = session is not None and session.state == alive.RUNNING
    gone = first is not None and is_dead(first.about)
    fresh = session is not None and seconds is not None and seconds <= OVERDUE * session.every
    if session and runs and fresh and not gone:
        report.state, report.doing = RUNNING, session.doing
        return True
    is_newer = holder is not None and (first is None or not _same(holder, first))
    if holder is not None and is_newer:
        _state_of_holder(report, found, holder, now)
        return False
    if session and runs and gone:
        report.state = FAILED
        report.notes.append(
            f"{first} is gone and said nothing at its end: it was killed, or ran out of memory"
        )
    elif session and runs:
        report.state, report.doing = SILENT, session.doing
        here = first is not None and is_here(first.about)
        report.doubtful = not here and seconds is not None and seconds < SKEW
    elif session is not None:
        ended = (FINISHED, STOPPED, FAILED)
        report.state = session.state if session.state in ended else UNKNOWN
        by = {number.value: number.name for number in signal.Signals}.get(session.signal or 0)
        if session.reason:
            report.notes.append(session.reason)
        elif by:
            report.notes.append(f"it was asked to end by {by}; the same command goes on")
    else:
        _state_of_old(report, found)
    return True


def _same(holder: Process, first: Process) -> bool:
    return (holder.host, holder.pid) == (first.host, first.pid)


def _state_of_holder(report: Report, found: Found, holder: Process, now: float) -> None:
    """Judges a run by who has its folder, as it has not said anything itself."""
    who = f"process {holder.pid} on {holder.host}"
    coming = found.held_since is not None and abs(now - found.held_since) < COMING
    if is_dead(holder.about):
        report.state = FAILED
        report.notes.append(f"{who}, which had the folder, is gone and said nothing at its end")
    elif is_here(holder.about) or coming:
        report.state, report.doing = RUNNING, heartbeat.STARTING
        if not coming:
            report.notes.append(f"{who} has the folder, and writes no {alive.ALIVE}")
    else:
        report.state = SILENT
        report.notes.append(f"{who} has the folder, and has given no sign that is on record")


def _state_of_old(report: Report, found: Found) -> None:
    """Judges a run that has left no word of itself."""
    reached = max(found.step or 0, found.saved.step if found.saved else 0)
    if not found.is_begun:
        report.state = NOT_BEGUN
    elif found.steps is not None and reached >= found.steps:
        report.state = FINISHED
    elif reached:
        report.state = STOPPED
        report.notes.append("how it ended is not on record")
    elif not found.troubles:
        report.state = NOT_BEGUN


def _left(report: Report, found: Found) -> None:
    """Reckons how long it takes to the last step, where this session has a pace."""
    has_pace = report.doing in (heartbeat.TRAINING, heartbeat.EVALUATING, heartbeat.SAVING)
    rate, tokens = found.tokens_per_second, found.step_tokens
    if has_pace and rate and tokens and report.steps is not None and report.step is not None:
        report.left_seconds = max(0, report.steps - report.step) * tokens / rate


def _silent(report: Report, session: Session, seconds: float, now: float) -> None:
    """Names the processes that give no sign."""
    for process in session.processes:
        pid = process.pid
        is_mine = pid is not None and is_here(process.about)
        quiet: float | None
        if report.state == SILENT and process.index == 0:
            quiet = seconds  # it writes for all
        elif process.seconds is None:
            began = session.written if session.began is None else session.began
            quiet = max(0.0, now - began)
            if quiet < COMING:
                continue
        else:
            quiet = process.seconds + seconds
        stopped = pid is not None and is_mine and is_stopped(pid)
        dead = is_mine and is_dead(process.about)
        overdue = report.state == SILENT and process.index == 0
        if process.seconds is None:
            said, overdue = "has given no sign yet", True
        elif dead:
            said = "is gone"
        elif stopped:
            said = f"has given no sign for {clock(quiet)}: a signal stopped it (kill -CONT {pid})"
        else:
            said = f"has given no sign for {clock(quiet)}"
            # Who writes knows of its own signs, and of the others' as they were then.
            overdue = overdue or process.seconds > QUIET
        if dead or stopped or overdue:
            report.silent.append(
                dict(process=process.index, host=process.host, seconds=round(quiet, 1), said=said)
            )
            report.notes.append(f"{process} {said}")


def _slowest(report: Report, found: Found) -> None:
    """Names the host that adds most to a step."""
    if len(found.host_seconds) < 2 or report.state not in (RUNNING, SILENT):
        return
    index = max(found.host_seconds, key=lambda i: found.host_seconds[i])
    own, middle = found.host_seconds[index], statistics.median(found.host_seconds.values())
    known = found.session.processes if found.session else ()
    process = known[index] if index < len(known) else Process(index, {})
    report.slowest = dict(
        process=index, host=process.host, host_seconds=own, median_host_seconds=middle
    )
    report.notes.append(
        f"slowest host: {process}, {own:.3f} s of its own a step (median of all: {middle:.3f} s)"
    )


def _records(report: Report, found: Found) -> None:
    """Tells of accidents, of starts before, and of stacks."""
    if report.accidents:
        total = sum(report.accidents.values())
        counts = ", ".join(f"{name} {count}" for name, count in sorted(report.accidents.items()))
        plural = "s" if total > 1 else ""
        report.notes.append(f"{total} accident{plural} ({counts}); last: {found.last_accident}")
    earlier = found.session.earlier if found.session else ()
    if earlier:
        states = collections.Counter(loose.words(e.get("state"), 20) or UNKNOWN for e in earlier)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(states.items()))
        step, last = loose.whole(earlier[-1].get("step")), loose.words(earlier[-1].get("reason"))
        where = "" if step is None else f"; the last came to step {step}"
        why = f" ({last})" if last else ""
        report.notes.append(f"start {1 + len(earlier)}; those before: {counts}{where}{why}")
    if found.stacks:
        report.notes.append(f"stacks of processes that hung: {loose.words(found.stacks)}")
