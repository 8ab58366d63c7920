"""The resources of the test double, and what happens to them by itself. Sources: ``cloud``."""

import dataclasses
import datetime
import json
import random
from collections.abc import Callable
from typing import Any

from tests.launch.tpu_vm.texts import described

NODE_OVER = ("PREEMPTED", "TERMINATED", "STOPPED")


@dataclasses.dataclass
class Faults:
    """How often, of one, what goes wrong; times in seconds."""

    before: float = 0.0  # an API error without effect
    after: float = 0.0  # an API error after the effect
    timeout: float = 0.0  # no answer, no effect
    late: float = 0.0  # no answer, and the effect comes later
    stale: float = 0.0  # a read shows what was
    quota: float = 0.0
    stockout: float = 0.0  # at once, or FAILED after a while
    fails: float = 0.0  # FAILED while PROVISIONING
    delete_fails: float = 0.0  # the delete was taken and does not happen, or not for all
    slow: float = 0.0  # ten times as long in a state
    lifetime: float = 0.0  # mean until a preemption of what is spot; 0: none
    illness: float = 0.0  # mean until a node is not READY or not healthy; 0: none
    meddling: float = 0.0  # somebody deletes a node of ours


class Resources:
    """All resources of one project, ours and others'."""

    def __init__(self, now: Callable[[], float], seed: int = 0, faults: Faults | None = None):
        self.now = now
        self.chance = random.Random(seed)
        self.faults = faults or Faults()
        self.queued: dict[str, dict[str, Any]] = {}  # by zone/name
        self.nodes: dict[str, dict[str, Any]] = {}
        self.events: list[list[Any]] = []  # time, number, what, key, uid
        self.past: dict[str, list[list[Any]]] = {}  # what has been seen when, by kind/zone/name
        self.script: list[list[str]] = []  # faults to come, by words of the command
        self.calls: list[str] = []
        self.numbers = 0
        self.made = 0  # queued resources that commands asked for
        self.clashes: list[str] = []  # resources asked for while their nodes were there
        self.held = 0.0  # seconds for which nodes were there that commands asked for
        self.advanced = now()
        self.quota = 10**6  # nodes

    # Kept between processes.

    _KEPT = (
        *("queued", "nodes", "events", "past", "script", "calls", "numbers", "made", "clashes"),
        *("held", "advanced", "quota"),
    )

    def dump(self) -> str:
        """Returns all of it as JSON."""
        kept = {name: getattr(self, name) for name in self._KEPT}
        return json.dumps(dict(kept, faults=vars(self.faults), chance=self.chance.getstate()))

    def load(self, text: str) -> None:
        """Takes what ``dump`` gave."""
        found = json.loads(text)
        version, state, gauss = found.pop("chance")
        self.chance.setstate((version, tuple(state), gauss))
        self.faults = Faults(**found.pop("faults"))
        for name, value in found.items():
            setattr(self, name, value)

    # What happens by itself.

    def advance(self) -> None:
        """Lets happen what is due."""
        while True:
            due = min(self.events, default=None, key=lambda event: event[:2])
            until = self.now() if due is None else min(due[0], self.now())
            if any(n["ours"] and n["state"] not in NODE_OVER for n in self.nodes.values()):
                self.held += max(0.0, until - self.advanced)
            self.advanced = max(self.advanced, until)
            if due is None or due[0] > self.now():
                return
            self.events.remove(due)
            _, _, what, key, uid = due
            getattr(self, f"_on_{what}")(key, uid)

    def preempt(self, name: str, zone: str) -> None:
        """Takes away the nodes of a queued resource, or a node that has none."""
        key = f"{zone}/{name}"
        self.advance()
        if key in self.queued:
            self._on_preempt(key, self.queued[key]["uid"])
        else:
            self._on_node_preempt(key, self.nodes[key]["uid"])

    def later(self, seconds: float, what: str, name: str, zone: str) -> None:
        """Has something happen to a queued resource: preempt, provisioning, suspend."""
        key = f"{zone}/{name}"
        self._later(seconds, what, key, self.queued[key]["uid"])

    def settle(self) -> None:
        """From now on nothing goes wrong, and what is there stays; what is ill is well."""
        self.faults = Faults()
        self.events = [
            event for event in self.events if event[2] not in ("preempt", "ill", "meddle")
        ]
        for key, node in list(self.nodes.items()):
            if node["ours"] and node["state"] in ("READY", "REPAIRING"):
                self._node(key, node, state="READY", health="HEALTHY")

    def _later(self, seconds: float, what: str, key: str, uid: str) -> None:
        if self.faults.slow and self.chance.random() < self.faults.slow:
            seconds *= 10
        self.numbers += 1
        self.events.append([self.advanced + seconds, self.numbers, what, key, uid])

    def _on_accepted(self, key: str, uid: str) -> None:
        if self._is(key, uid, "CREATING"):
            self._state(key, "ACCEPTED")
            self._later(self.chance.uniform(1, 20), "waiting", key, uid)

    def _on_waiting(self, key: str, uid: str) -> None:
        if self._is(key, uid, "ACCEPTED"):
            self._state(key, "WAITING_FOR_RESOURCES")
            self._later(self.chance.uniform(5, 600), "provisioning", key, uid)

    def _on_provisioning(self, key: str, uid: str) -> None:
        if not self._is(key, uid, "WAITING_FOR_RESOURCES"):
            return
        self._state(key, "PROVISIONING")
        queued = self.queued[key]
        for name in queued["node_names"]:
            node = f"{key.partition('/')[0]}/{name}"
            if node in self.nodes:
                self._fail(key, 6, f"Resource {name!r} already exists")
                return
        for name in queued["node_names"]:
            self._make_node(f"{key.partition('/')[0]}/{name}", queued, "CREATING")
        self._later(self.chance.uniform(30, 300), "active", key, uid)

    def _on_active(self, key: str, uid: str) -> None:
        if not self._is(key, uid, "PROVISIONING"):
            return
        if self.chance.random() < self.faults.fails:
            code, said = self.chance.choice(
                [
                    (13, "an internal error has occurred"),
                    (8, "There is no more capacity in the zone; you can try in another zone"),
                ]
            )
            self._fail(key, code, said)
            return
        self._state(key, "ACTIVE")
        for node_key, node in self._nodes_of(key):
            self._node(node_key, node, state="READY", health="HEALTHY")
            if self.faults.illness:
                self._later(
                    self.chance.expovariate(1 / self.faults.illness), "ill", node_key, node["uid"]
                )
            if self.chance.random() < self.faults.meddling:
                self._later(self.chance.uniform(1, 7200), "meddle", node_key, node["uid"])
        if self.queued[key]["spot"] and self.faults.lifetime:
            self._later(self.chance.expovariate(1 / self.faults.lifetime), "preempt", key, uid)

    def _on_preempt(self, key: str, uid: str) -> None:
        if not (self._is(key, uid, "ACTIVE") or self._is(key, uid, "PROVISIONING")):
            return
        for node_key, node in self._nodes_of(key):
            self._node(node_key, node, state="PREEMPTED")
        if self.chance.random() < 0.25:  # the queued resource lags behind
            self._later(self.chance.uniform(60, 3600), "suspend", key, uid)
        else:
            self._on_suspend(key, uid)

    def _on_suspend(self, key: str, uid: str) -> None:
        if self._is(key, uid, "ACTIVE") or self._is(key, uid, "PROVISIONING"):
            self._state(key, "SUSPENDING")
            self._later(self.chance.uniform(10, 120), "suspended", key, uid)

    def _on_suspended(self, key: str, uid: str) -> None:
        if not self._is(key, uid, "SUSPENDING"):
            return
        self._state(key, "SUSPENDED")
        if self.chance.random() < 0.8:  # else they stay PREEMPTED until they are deleted
            for node_key, _ in self._nodes_of(key):
                self._set("nodes", node_key, None)

    def _on_node_preempt(self, key: str, uid: str) -> None:
        node = self.nodes.get(key)
        if node and node["uid"] == uid:
            self._node(key, node, state="PREEMPTED")

    def _on_ill(self, key: str, uid: str) -> None:
        node = self.nodes.get(key)
        if not node or node["uid"] != uid or node["state"] != "READY":
            return
        if self.chance.random() < 0.5:
            self._node(key, node, state="REPAIRING")
        else:
            health = self.chance.choice(["UNHEALTHY_MAINTENANCE", "UNHEALTHY_TENSORFLOW"])
            self._node(key, node, health=health)
        if self.chance.random() < 0.7:
            self._later(self.chance.uniform(60, 1800), "well", key, uid)

    def _on_meddle(self, key: str, uid: str) -> None:
        node = self.nodes.get(key)
        if node and node["uid"] == uid and node["state"] == "READY":
            self._node(key, node, state="DELETING", before="READY")
            self._later(30, "node_deleted", key, uid)

    def _on_well(self, key: str, uid: str) -> None:
        node = self.nodes.get(key)
        if node and node["uid"] == uid and node["state"] in ("READY", "REPAIRING"):
            self._node(key, node, state="READY", health="HEALTHY")

    def _on_deleted(self, key: str, uid: str) -> None:
        if not self._is(key, uid, "DELETING"):
            return
        fails = self.chance.random() < self.faults.delete_fails
        if fails and self.chance.random() < 0.5:  # nothing of it happens
            self._state(key, self.queued[key]["before"])
            for node_key, node in self._nodes_of(key):
                self._node(node_key, node, state=node["before"])
            return
        for node_key, node in self._nodes_of(key):
            if fails:  # left behind
                self._node(node_key, node, state=node["before"])
            else:
                self._set("nodes", node_key, None)
        self._set("queued", key, None)

    def _on_node_deleted(self, key: str, uid: str) -> None:
        node = self.nodes.get(key)
        if not node or node["uid"] != uid or node["state"] != "DELETING":
            return
        if self.chance.random() < self.faults.delete_fails:
            self._node(key, node, state=node["before"])
            return
        self._set("nodes", key, None)
        queued = f"{key.partition('/')[0]}/{node['queued']}"
        if node["queued"] and queued in self.queued:
            self._on_suspend(queued, self.queued[queued]["uid"])

    # What is there.

    def put_node(self, name: str, zone: str, ours: bool = False, **changed: Any) -> None:
        """Makes a TPU VM that no command asked for."""
        queued = dict(labels={}, accelerator="v5litepod-8", config={}, spot=False, ours=ours)
        self._make_node(f"{zone}/{name}", dict(queued, **changed), "READY")
        self._node(f"{zone}/{name}", self.nodes[f"{zone}/{name}"], health="HEALTHY", queued="")
        self._long_ago()

    def put_queued(self, name: str, zone: str, state: str = "ACTIVE", **changed: Any) -> None:
        """Makes a queued resource that no command asked for."""
        key = f"{zone}/{name}"
        made = dict(
            uid=self._uid(),
            created=self._timestamp(),
            state=state,
            before=state,
            spot=False,
            labels={},
            accelerator="v5litepod-8",
            config={},
            node_names=[name],
            several=False,
            prefix=name,
            ours=False,
            error=None,
        )
        self._set("queued", key, dict(made, **changed))
        if state == "ACTIVE":
            for node in self.queued[key]["node_names"]:
                self._make_node(f"{zone}/{node}", self.queued[key], "READY")
        self._long_ago()

    def _long_ago(self) -> None:
        """Lets all that is there have been there for ever, so that no read is too late for it."""
        self.past = {path: [[-1e18, seen[-1][1]]] for path, seen in self.past.items()}

    def _make_node(self, key: str, queued: dict[str, Any], state: str) -> None:
        made = dict(
            uid=self._uid(),
            created=self._timestamp(),
            state=state,
            before=state,
            health="",
            labels=queued["labels"],
            accelerator=queued["accelerator"],
            config=queued["config"],
            queued=queued.get("prefix", ""),
            ours=queued["ours"],
            number=self.numbers % 250,
        )
        self._set("nodes", key, made)

    def _nodes_of(self, key: str) -> list[tuple[str, dict[str, Any]]]:
        zone, _, name = key.partition("/")
        names = [f"{zone}/{node}" for node in self.queued[key]["node_names"]]
        return [
            (node, self.nodes[node])
            for node in names
            if node in self.nodes and self.nodes[node]["queued"] == name
        ]

    def _is(self, key: str, uid: str, state: str) -> bool:
        found = self.queued.get(key)
        return found is not None and found["uid"] == uid and found["state"] == state

    def _state(self, key: str, state: str) -> None:
        self._set("queued", key, dict(self.queued[key], state=state))

    def _fail(self, key: str, code: int, said: str) -> None:
        for node_key, _ in self._nodes_of(key):
            self._set("nodes", node_key, None)
        error = dict(code=code, message=said)
        self._set("queued", key, dict(self.queued[key], state="FAILED", error=error))

    def _node(self, key: str, node: dict[str, Any], **changed: Any) -> None:
        self._set("nodes", key, dict(node, **changed))

    def _set(self, kind: str, key: str, found: dict[str, Any] | None) -> None:
        if found is None:
            del getattr(self, kind)[key]
        else:
            getattr(self, kind)[key] = found
        text = json.dumps(described(kind, key, found)) if found else ""
        seen = self.past.setdefault(f"{kind}/{key}", [[-1e18, ""]])
        seen.append([self.advanced, text])
        del seen[:-12]

    def _uid(self) -> str:
        self.numbers += 1
        return str(self.numbers)

    def _timestamp(self) -> str:
        self.numbers += 1
        at = datetime.datetime.fromtimestamp(self.advanced, datetime.UTC)
        return f"{at:%Y-%m-%dT%H:%M:%S}.{self.numbers:09d}Z"
