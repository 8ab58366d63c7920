"""A test double of Cloud TPU: states, answers and complaints as documented, with faults at will.

Sources:

- The reference of the Cloud TPU API v2: ``QueuedResourceState.State`` and its state data,
  ``Node.State`` and ``Node.Health``, ``MultisliceParams`` (nodes are called PREFIX-0, PREFIX-1),
  ``queuedResources.delete`` (with ``force`` nodes go first; without it only what is ACCEPTED,
  FAILED or SUSPENDED, or has no nodes any more, can be deleted).
- The guide "Manage queued resources": a request goes from WAITING_FOR_RESOURCES through
  PROVISIONING to ACTIVE; what failed or is suspended stays until it is deleted.
- The guide "Preemptible TPUs and Spot VMs": what is preempted does not come back.
- The gcloud CLI 528: the flags of each command, the form of its errors, exit status 1, and 2 for
  flags that it does not know.
- Sentences of errors as users quote them: skypilot#4579 (capacity), marin#87 (quota, which dead
  queued resources use up too), and of a NOT_FOUND just after a create.

Time is what ``now`` says. All that is to happen is in a list of events, so that a state can be kept
as JSON between two processes (``fake_gcloud``).
"""

import json
import re
from collections.abc import Sequence

from tests.launch.tpu_vm.resources import Faults, Resources
from tests.launch.tpu_vm.texts import (
    PROJECT,
    REFUSALS,
    TROUBLE,
    Answer,
    Refused,
    described,
    full_name,
    not_found,
    parsed,
)

__all__ = ["LATE", "Cloud", "Faults"]

STALE = 45.0  # seconds by which a read may be late, at most
LATE = 240.0  # seconds by which a request may be late whose sender has given up, at most


class Cloud(Resources):
    """All resources of one project, ours and others', behind gcloud's commands."""

    def call(self, argv: Sequence[str]) -> Answer:
        """Answers a command of gcloud, with the faults that are due."""
        self.advance()
        words = list(argv)
        shown = self.shown(words)
        self.calls.append(shown)
        fault = self._fault(shown)
        where = shown.replace(" ", ".")
        if fault == "timeout":
            return Answer(None)
        if fault == "late":
            self.numbers += 1
            late = self.now() + self.chance.uniform(0, LATE)
            self.events.append([late, self.numbers, "late", json.dumps(words), ""])
            return Answer(None)
        if fault == "before":
            return Answer(1, "", f"ERROR: ({where}) {self._trouble()}")
        if fault in REFUSALS:
            return Answer(1, "", f"ERROR: ({where}) {REFUSALS[fault]}\n")
        try:
            out = self._do(words)
        except Refused as error:
            return Answer(error.status, "", f"ERROR: ({where}) {error.text}\n")
        if fault == "after":
            return Answer(1, "", f"ERROR: ({where}) {self._trouble()}")
        return Answer(0, out)

    def _fault(self, shown: str) -> str:
        for number, (words, fault) in enumerate(self.script):
            if words in shown:
                del self.script[number]
                return fault
        drawn, faults = self.chance.random(), self.faults
        chances = dict(
            before=faults.before, after=faults.after, timeout=faults.timeout, late=faults.late
        )
        if "create" in shown:
            chances |= dict(quota=faults.quota, stockout=faults.stockout)
        for name, chance in chances.items():
            if drawn < chance:
                return name
            drawn -= chance
        return ""

    def _trouble(self) -> str:
        return self.chance.choice(TROUBLE) + "\n"

    @staticmethod
    def shown(words: Sequence[str]) -> str:
        """Returns the command without its flags and names: gcloud compute tpus tpu-vm list."""
        plain = [word for word in words if not word.startswith("-")]
        return " ".join(["gcloud", *plain[1 : 6 if "alpha" in plain else 5]])

    def _do(self, words: list[str]) -> str:
        positional, flags = parsed(words)
        rest = [word for word in positional if word != "alpha"]
        if rest[:2] == ["config", "get-value"]:
            return PROJECT + "\n"
        if rest[:2] != ["compute", "tpus"] or len(rest) < 4:
            raise Refused(f"Invalid choice: {' '.join(rest)!r}.", 2)
        if flags.get("project", PROJECT) != PROJECT:
            raise Refused(
                "PERMISSION_DENIED: Permission 'tpu.nodes.get' denied on resource "
                f"'projects/{flags['project']}' (or it may not exist)."
            )
        kind = {"queued-resources": "queued", "tpu-vm": "nodes"}[rest[2]]
        if rest[3] == "list":
            return self._list(kind, flags["zone"])
        key = f"{flags['zone']}/{rest[4]}"
        verb = {"create": self._create, "describe": self._describe, "delete": self._delete}
        return verb[rest[3]](kind, key, flags)

    def _list(self, kind: str, zone: str) -> str:
        every = getattr(self, kind).items()
        shown = [described(kind, k, v) for k, v in every if zone in ("-", k.partition("/")[0])]
        return json.dumps(shown)

    def _describe(self, kind: str, key: str, flags: dict[str, str]) -> str:
        assert flags.get("format") == "json"
        found = getattr(self, kind).get(key)
        text = json.dumps(described(kind, key, found)) if found else ""
        if self.faults.stale and self.chance.random() < self.faults.stale:
            at = self.now() - self.chance.uniform(0, STALE)
            for since, was in self.past.get(f"{kind}/{key}", []):
                if since <= at:
                    text = was
        if not text:
            raise Refused(not_found(kind, key))
        return text

    def _create(self, kind: str, key: str, flags: dict[str, str]) -> str:
        assert kind == "queued"
        name = key.partition("/")[2]
        if key in self.queued:
            raise Refused(f"ALREADY_EXISTS: Resource '{full_name(kind, key)}' already exists")
        if not re.fullmatch(r"v[0-9](litepod|p|e)?-[0-9]+", flags.get("accelerator-type", "v4-8")):
            raise Refused(
                "INVALID_ARGUMENT: Cloud TPU received a bad request. The requested accelerator "
                f'configuration for accelerator type, "{flags["accelerator-type"]}", could not be '
                "found in the zonal accelerator configurations; the accelerator was not found"
            )
        count = int(flags.get("node-count", 1))
        if len(self.nodes) + count > self.quota:
            raise Refused(REFUSALS["quota"])
        prefix = flags.get("node-prefix", name)
        names = [f"{prefix}-{n}" for n in range(count)] if count > 1 else [flags["node-id"]]
        zone = key.partition("/")[0]
        self.clashes += [n for n in names if f"{zone}/{n}" in self.nodes]
        uid = self._uid()
        made = dict(
            uid=uid,
            created=self._timestamp(),
            state="CREATING",
            before="CREATING",
            spot="spot" in flags,
            labels=dict(part.split("=", 1) for part in flags.get("labels", "").split(",") if part),
            accelerator=flags.get("accelerator-type", ""),
            config={k: flags[k] for k in ("type", "topology") if k in flags},
            node_names=names,
            several=count > 1,
            prefix=prefix,
            ours=True,
            error=None,
        )
        self.made += 1
        self._set("queued", key, made)
        self._later(self.chance.uniform(1, 10), "accepted", key, uid)
        return json.dumps(described("queued", key, made))

    def _delete(self, kind: str, key: str, flags: dict[str, str]) -> str:
        found = getattr(self, kind).get(key)
        if found is None:
            raise Refused(not_found(kind, key))
        if found["state"] == "DELETING":
            raise Refused(f"FAILED_PRECONDITION: '{full_name(kind, key)}' is being deleted")
        wait = self.chance.uniform(5, 120)
        if kind == "nodes":
            self._node(key, found, state="DELETING", before=found["state"])
            self._later(wait, "node_deleted", key, found["uid"])
            return ""
        idle = found["state"] in ("ACCEPTED", "FAILED", "SUSPENDED") or not self._nodes_of(key)
        if "force" not in flags and not idle:
            raise Refused(
                "FAILED_PRECONDITION: the queued resource has nodes; delete them first, or use "
                "--force"
            )
        self._set("queued", key, dict(found, state="DELETING", before=found["state"]))
        for node_key, node in self._nodes_of(key):
            before = node["before"] if node["state"] == "DELETING" else node["state"]
            self._node(node_key, node, state="DELETING", before=before)
        self._later(wait, "deleted", key, found["uid"])
        return ""

    def _on_late(self, line: str, uid: str) -> None:
        del uid
        try:
            self._do(json.loads(line))
        except Refused:
            return
