"""All hosts of a job as one: set up, started at once, followed, stopped when one fails."""

import dataclasses
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from configs.console import tell
from configs.errors import UserError
from launch.group import GRACE, PATIENCE
from launch.hosts.call import Call, Stumbled, Unreachable, ask
from launch.hosts.everywhere import everywhere, values
from launch.hosts.finding import Finding
from launch.hosts.follower import Follower
from launch.hosts.host import Host
from launch.hosts.logs import Logs
from launch.hosts.plan import Plan
from launch.supervision import MISTAKE, Ending
from train.processes.watch import LOST

# Seconds: to prepare a host without a word from it; after which a host that cannot be reached is
# given up, where the others have ended; and for one that is alone.
QUIET, GIVEN_UP, ALONE = 1800.0, 30.0, 600.0
# Seconds beyond those in which a host's agent kills its processes itself, and tells why.
MARGIN = 30.0
KILLING = 10.0  # seconds after which what was to be killed, and has not ended, is so again
INITIALISING = 60.0  # seconds after which it is asked why not all processes are joined
_ANSWER = 60.0  # seconds for the answer to a short question

# Returns what is wrong; given whether the job runs.
Examine = Callable[[bool], list[Finding]]


class Occupied(UserError):
    """The job runs already, with another description."""


class Fleet:
    """The hosts of a job.

    Attributes:
      asked: signals that asked the launcher to end.
      saved: the newest saved step of the run that a host has told of.
      started: whether the job runs, as far as is known.
      followers: of the latest attempt, one for each host.
      lost: whether the latest attempt ended as hosts could not be reached any more.
      taken: whether it ended as another launcher has begun another.
    """

    def __init__(
        self, plan: Plan, logs: Logs, examine: Examine | None = None, beforehand: bool = True
    ):
        """Makes it; nothing is asked yet.

        Args:
          plan: what to run.
          logs: where goes what is said.
          examine: looks for what is wrong, before a start, and when one takes too long.
          beforehand: whether it does before a start.
        """
        self.asked: list[int] = []
        self.saved, self.started = 0, False
        self.followers: list[Follower] = []
        self.lost = self.taken = False
        self._plan, self._logs, self._examine = plan, logs, examine
        self._attempt = ""
        self._left = self._looked = False
        self._beforehand, self._begins = beforehand, True

    def adopt(self, any_job: bool = False) -> bool:
        """Looks whether the job runs already; if so, the next attempt is the one that runs.

        What is left of it on some of the hosts alone is ended by the next start.

        Args:
          any_job: whatever its description, and though it has ended.

        Raises:
          Occupied: it runs with another description.
          Unreachable: a host cannot be asked.
        """
        plan = self._plan
        found = values(everywhere(plan.hosts, self._look))
        self._looked = True
        self._attempt = max((one["state"].get("attempt", "") for one in found if one), default="")
        if any_job:
            return bool(self._attempt)
        running = [one for one in found if one and one["state"].get("state") == "running"]
        if not running:
            return False
        for one in running:
            differs = plan.same(one["job"])
            if differs == ["code"]:
                self._say("it runs with the code that it was started with, not as it is here now")
            elif differs:
                raise Occupied(
                    f"the job {plan.name} runs already with another {', '.join(differs)}; stop it "
                    f"(python -m {plan.launcher} stop), or give this one another --name."
                )
        attempts = {one["state"]["attempt"] for one in running}
        if len(running) < len(plan.hosts) or len(attempts) > 1:
            self._say(f"the job {plan.name} runs on {len(running)} of {len(plan.hosts)} hosts")
            return False
        self._say(f"the job {plan.name} runs already; following it")
        self.started = True
        return True

    def attempt(self) -> Ending:
        """Sets up and starts all hosts, or follows what runs; returns when all have ended.

        Raises:
          UserError: a host refuses.
        """
        self._begins = True
        try:
            if not self._looked or self.lost:  # it may have gone on all the while
                self.adopt()
            wrong = "" if self.started else self.begin()
        except Unreachable as error:
            wrong = f"{error.host.name} cannot be reached ({error.reason})"
        finally:
            self._begins = False
        return Ending(LOST, wrong) if wrong else self.follow()

    def begin(self) -> str:
        """Sets up all hosts and starts them.

        Returns:
          Why nothing was started, as a sentence begins, where that may pass; else nothing.

        Raises:
          UserError: a host refuses, or something is wrong that does not pass by itself.
          Unreachable: a host cannot be reached.
        """
        try:
            prepared = self._prepare()
        except Stumbled as error:
            return str(error).removesuffix(".")
        if wrong := self._examined():
            return wrong
        if self._left:
            return "it was let go of before it was started"
        known, self._attempt = self._attempt, _later_than(self._attempt)
        try:
            self._start(prepared, known)
        except BaseException:
            if self.started:  # on some, where it would wait for the others
                self.started = False
                everywhere(self._plan.hosts, functools.partial(_stop_one, self._stopping(True)))
            raise
        return ""

    def follow(self) -> Ending:
        """Returns when all hosts have ended, or are given up, or have been let go of.

        Raises:
          UserError: what they say cannot be written here.
        """
        began = time.monotonic()
        self.followers = [
            Follower(host, self._plan, self._attempt, self._logs) for host in self._plan.hosts
        ]
        followers = self.followers
        for follower in followers:
            follower.start()
        end = _End(self._stop)
        examined = False
        try:
            while not (self._left or all(follower.ended for follower in followers)):
                failed = any(f.state.get("status") for f in followers if f.ended)
                failed = failed or _is_stuck(followers)
                end.look(failed, self.asked)
                if mistake := next((f.mistake for f in followers if f.mistake), None):
                    raise mistake
                if self._lost(followers, failed or bool(self.asked)):
                    break
                if not examined and time.monotonic() > began + INITIALISING:
                    examined = True
                    # In a thread: it takes most of a minute, in which a signal may come.
                    threading.Thread(target=self._ask_why, args=(followers,), daemon=True).start()
                time.sleep(0.2)
        finally:
            for follower in followers:
                follower.close()
            self.started = False
        self.lost = not all(follower.ended for follower in followers)
        self.taken = any(follower.state.get("taken") for follower in followers)
        self.saved = max([self.saved, *(f.state.get("saved", 0) for f in followers)])
        return _ending(followers)

    def let_go(self) -> None:
        """Has ``follow`` return: what runs on the hosts goes on, or they are gone."""
        self._left = True

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Has the job stop, after a step that is saved; a second signal ends it at once."""
        del frame
        self.asked.append(number)
        if self._begins:
            tell("stopped; nothing was started", sys.stderr)
            os._exit(128 + number)

    def leave(self, number: int, frame: FrameType | None) -> None:
        """Ends the launcher alone: what has been started goes on."""
        del frame
        os._exit(128 + number)

    def _look(self, host: Host) -> dict[str, Any]:
        request = dict(action="look", root=self._plan.root, name=self._plan.name)
        found: dict[str, Any] = ask(host, "jobs", _ANSWER, **request)["jobs"]
        return found.get(self._plan.name, {})

    def _examined(self) -> str:
        """Returns what keeps the job from starting now, as a sentence begins; empty where nothing.

        Raises:
          UserError: something that does not pass by itself.
        """
        found = self._examine(False) if self._examine and self._beforehand else []
        fatal = sorted((f for f in found if f.fatal), key=lambda finding: finding.passing)
        for finding in found:
            if finding not in fatal[:1]:
                self._say(finding.sentence)
        if fatal and not fatal[0].passing:
            raise UserError(fatal[0].sentence)
        return fatal[0].sentence.removesuffix(".") if fatal else ""

    def _prepare(self) -> list[dict[str, Any]]:
        def prepare(host: Host) -> dict[str, Any]:
            with Call(host, "prepare", **self._plan.prepare_request()) as call:

                def heard(message: dict[str, Any]) -> None:
                    if message.get("need") == "code":
                        call.send_bytes(self._plan.snapshot.packed)
                    elif "say" in message:
                        self._logs.show(host, message["say"])

                return call.answer(QUIET, heard)

        return values(everywhere(self._plan.hosts, prepare))

    def _start(self, prepared: list[dict[str, Any]], known: str) -> None:
        """Starts all when all are ready; none where one is not.

        Raises:
          UserError: a host refuses.
          Unreachable: one cannot be reached.
        """
        plan, calls = self._plan, list[Call]()
        try:
            for index, host in enumerate(plan.hosts):
                request = plan.start_request(index, self._attempt, known, prepared[index])
                calls.append(Call(host, "jobs", **request))
            for call in calls:
                next(call.messages(_ANSWER))  # ready
            if self._left:
                return
            self.started, self._begins = True, False
            for call in calls:
                call.send(go=True)
            for call in calls:
                call.answer(_ANSWER)
        finally:
            for call in calls:
                call.close()
        where = ", ".join(host.name for host in plan.hosts)
        self._say(f"started on {where}")

    def _lost(self, followers: list[Follower], others_end: bool) -> bool:
        """Tells whether all that have not ended are to be given up."""
        left = [follower for follower in followers if not follower.ended]
        others_end = others_end or len(left) < len(followers)
        patience = GIVEN_UP if others_end else ALONE if len(followers) == 1 else float("inf")
        return all(follower.reason and follower.silent() > patience for follower in left)

    def _ask_why(self, followers: list[Follower]) -> None:
        if self._examine is None or all(f.state.get("joined") for f in followers):
            return
        self._say(f"not all processes are joined after {INITIALISING:.0f} s; looking why")
        found = [finding.sentence for finding in self._examine(True)]
        for sentence in found or ["nothing that is wrong was found"]:
            self._say(sentence)

    def _stop(self, kill: bool) -> None:
        """Asks all hosts to end; from a thread, as some may not answer."""
        act = functools.partial(_stop_one, self._stopping(kill))
        threading.Thread(target=everywhere, args=(self._plan.hosts, act), daemon=True).start()

    def _stopping(self, kill: bool) -> dict[str, Any]:
        return dict(
            action="stop", root=self._plan.root, name=self._plan.name, kill=kill, wanted=False
        )

    def _say(self, line: str) -> None:
        tell(line, sys.stderr)


def _later_than(attempt: str) -> str:
    """Returns what an attempt that begins now is called; later ones are greater, as texts."""
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return now if now > attempt else f"{attempt}x"  # of a clock that was ahead


def _stop_one(request: dict[str, Any], host: Host) -> dict[str, Any]:
    return ask(host, "jobs", _ANSWER, **request)


def _is_stuck(followers: list[Follower]) -> bool:
    """Tells whether a host has gone before all were joined: the others would wait for it long."""
    if all(follower.state.get("joined") for follower in followers):
        return False
    return any(f.reason and f.silent() > GIVEN_UP for f in followers if not f.ended)


@dataclasses.dataclass
class _End:
    """When the hosts of a job are asked to end, and when they are killed."""

    stop: Callable[[bool], None]  # whether to kill
    _since: float | None = None  # when one has failed
    _told: float | None = None  # when all were asked
    _killed: float | None = None  # when they were last killed

    def look(self, failed: bool, asked: list[int]) -> None:
        """Asks and kills where it is time to.

        Args:
          failed: whether a host has.
          asked: signals to the launcher.
        """
        now = time.monotonic()
        if failed and self._since is None:
            self._since = now
        due = self._since is not None and now > self._since + PATIENCE
        if (due or asked) and self._told is None:
            self._told = now
            self.stop(False)
        late = self._told is not None and now > self._told + GRACE + MARGIN
        again = self._killed is None or now > self._killed + KILLING
        if (late or len(asked) > 1) and again:
            self._killed = now
            self.stop(True)


def _ending(followers: list[Follower]) -> Ending:
    """Returns how an attempt ended: by the host that failed, not by those that fail of it."""
    rank = {LOST: 2, MISTAKE: 3, 0: 5}

    def order(follower: Follower) -> int:
        if follower.ended and follower.state.get("reason"):  # a process was killed, or hung
            return 0
        return rank.get(follower.state.get("status", LOST), 1) if follower.ended else 4

    step = max((f.state.get("step", -1) for f in followers), default=-1)
    stacks = next((f.state["stacks"] for f in followers if f.state.get("stacks")), "")
    wanted = any(follower.state.get("wanted") for follower in followers)
    if taken := next((f.host.name for f in followers if f.state.get("taken")), ""):
        return Ending(MISTAKE, f"another launcher has taken the job on {taken}", step)
    first = min(followers, key=order)
    gone = [follower for follower in followers if not follower.ended]
    if gone and order(first) in (2, 4, 5):
        names = ", ".join(follower.host.name for follower in gone)
        reason = f"{names} cannot be reached ({gone[0].reason})"
        return Ending(LOST, reason, step, stacks, wanted)
    state = first.state
    reason = state.get("reason", "")
    where = f"on {first.host.name} "
    status = state.get("status", LOST)
    if not reason and status:
        reason = f"the processes {where}ended with exit status {status}"
    elif reason:
        reason = f"{where}{reason}".strip()
    return Ending(status, reason, step, stacks, wanted)
