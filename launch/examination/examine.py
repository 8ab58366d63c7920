"""Asks all hosts of a job at once for what may be wrong, within a minute."""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launch.examination import findings
from launch.examination.findings import Expected
from launch.hosts.call import Call, Unreachable
from launch.hosts.finding import Finding
from launch.hosts.host import Host
from launch.hosts.plan import Plan
from launch.hosts.remote import probe

_ANSWER = probe.LOOKING + 12.0  # seconds for what a host finds
_SHORT = probe.CONNECTING + 5.0


class Examination:
    """What all hosts of a job say of themselves.

    Attributes:
      facts: by host, of those that answered.
      found: what is wrong.
    """

    def __init__(self, plan: Plan, checkout: str = "", devices: bool = True):
        """Asks all.

        Args:
          plan: of the job; without a config where its job names none.
          checkout: folder of the code on the hosts, in place of what a launcher sent.
          devices: whether to ask for the devices, which takes them for a moment.
        """
        self.facts: dict[str, dict[str, Any]] = {}
        self.found: list[Finding] = []
        self._plan, self._checkout, self._devices = plan, checkout, devices
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(plan.hosts)) as pool:
            calls = list(pool.map(lambda host: self._call(host, stack), plan.hosts))
            reached = [call for call in calls if call is not None]
            list(pool.map(self._look, reached))
            answered = [call for call in reached if call.host.name in self.facts]
            self.facts = {call.host.name: self.facts[call.host.name] for call in answered}
            expected = Expected(plan.snapshot.revision, own_code=not checkout)
            self.found += findings.findings(self.facts, expected)
            self.found += self._port(answered, pool)
        self.found.sort(key=lambda finding: not finding.fatal)

    @property
    def fatal(self) -> list[Finding]:
        """Returns what keeps a run from starting."""
        return [finding for finding in self.found if finding.fatal]

    def _call(self, host: Host, stack: contextlib.ExitStack) -> Call | None:
        return stack.enter_context(Call(host, "probe"))

    def _look(self, call: Call) -> None:
        plan, host = self._plan, call.host
        request = dict(
            root=plan.root,
            name=plan.name,
            code=plan.snapshot.digest,
            checkout=self._checkout,
            files=dict(plan.snapshot.digests),
            interpreter=plan.interpreter,
            workdir=plan.job.workdir,
            arguments=plan.job.arguments() if plan.job.config else [],
            environment=dict(plan.job.environment),
            devices=self._devices,
        )
        try:
            skew, uncertain = self._skew(call)
            facts = _ask(call, _ANSWER, act="look", **request)
        except Unreachable as error:
            self.found.append(findings.unreachable(host.name, error.reason))
            return
        self.facts[host.name] = facts | dict(skew=skew, uncertain=uncertain)

    def _skew(self, call: Call) -> tuple[float, float]:
        """Returns how far a host's clock is ahead of this one, and how exactly that is known."""
        _ask(call, _ANSWER, act="time")  # with the connection
        before = time.time()
        there = _ask(call, _SHORT, act="time")["time"]
        after = time.time()
        return there - (before + after) / 2, (after - before) / 2

    def _port(self, calls: Sequence[Call], pool: ThreadPoolExecutor) -> list[Finding]:
        """Tries the coordinator's port from all other hosts."""
        first = self._plan.hosts[0]
        host, _, number = self._plan.coordinator.rpartition(":")
        address, port = host.strip("[]"), int(number)
        listener = next((call for call in calls if call.host == first), None)
        if listener is None or len(self._plan.hosts) == 1:
            return []
        if self.facts[first.name]["job"]["state"] == "running":
            listening: dict[str, Any] = {}  # training itself does
        else:
            listening = _tried(listener, act="listen", port=port)
        others = [call for call in calls if call is not listener]

        def reach(call: Call) -> dict[str, Any]:
            return _tried(call, act="connect", address=address, port=port)

        tried = {c.host.name: one for c, one in zip(others, pool.map(reach, others), strict=True)}
        return findings.port(first.name, listening, tried, address, port)


def _tried(call: Call, **request: Any) -> dict[str, Any]:
    try:
        return _ask(call, _SHORT, **request)
    except Unreachable as error:
        return dict(error=error.reason)


def _ask(call: Call, timeout: float, **request: Any) -> dict[str, Any]:
    call.send(**request)
    found: dict[str, Any] = next(call.messages(timeout))["found"]
    return found
