"""What gcloud answers, read into small records.

Sources: the reference of the Cloud TPU API v2, resources ``projects.locations.queuedResources`` and
``projects.locations.nodes``, which ``--format=json`` prints as they are.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from launch.tpu_vm.gcloud import BY, OURS, RUN, Request


class Unreadable(Exception):
    """An answer is none that the API gives."""


@dataclasses.dataclass(frozen=True)
class Queued:
    """A queued resource."""

    name: str
    state: str  # CREATING ... ACTIVE ... FAILED
    created: str  # as the API writes it
    accelerator: str  # v5litepod-8, or v4:2x2x4
    zone: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nodes: int = 1
    spot: bool = False
    code: int = 0  # of the error that it failed with
    reason: str = ""  # the same in words
    node_id: str = ""  # name of its TPU VM, or how those of several begin


@dataclasses.dataclass(frozen=True)
class Node:
    """A TPU VM."""

    name: str
    state: str  # READY, CREATING, PREEMPTED ...
    created: str
    accelerator: str
    zone: str = ""
    health: str = ""  # "" or HEALTHY where nothing is known against it
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    queued: str = ""  # the queued resource that it belongs to
    addresses: tuple[str, ...] = ()  # of its hosts inside the network, worker 0 first


def token(found: Queued | Node) -> str:
    """Returns the run that a resource is marked with; ``""`` for none of ours."""
    return found.labels.get(RUN, "") if found.labels.get(BY) == OURS else ""


def queued(text: str) -> Queued:
    """Reads the description of a queued resource.

    Raises:
      Unreadable: it is none.
    """
    return _queued(_object(text))


def all_queued(text: str) -> list[Queued]:
    """Reads the list of queued resources.

    Raises:
      Unreadable: it is none.
    """
    return [_queued(each) for each in _objects(text)]


def node(text: str) -> Node:
    """Reads the description of a TPU VM.

    Raises:
      Unreadable: it is none.
    """
    return _node(_object(text))


def all_nodes(text: str) -> list[Node]:
    """Reads the list of TPU VMs.

    Raises:
      Unreadable: it is none.
    """
    return [_node(each) for each in _objects(text)]


def seconds(created: str) -> float:
    """Returns the time of a timestamp of the API, in seconds since 1970; nan where it is none."""
    matched = re.fullmatch(r"(\d+-\d+-\d+T\d+:\d+:\d+)(\.\d+)?(Z|[+-]\d+:\d+)", created)
    if not matched:
        return float("nan")
    offset = "+00:00" if matched[3] == "Z" else matched[3]
    whole = datetime.datetime.fromisoformat(matched[1] + offset).timestamp()
    return whole + float(matched[2] or 0)


def fits(found: Queued | Node, request: Request) -> bool:
    """Tells whether what is there is of the type that is asked for."""
    wanted = request.accelerator
    shaped = f"{wanted.generation.name}:{wanted.topology}"
    return found.accelerator in (wanted.name, shaped, "")


def _object(text: str) -> dict[str, Any]:
    found = _json(text)
    if not isinstance(found, dict):
        raise Unreadable("an answer of gcloud is no JSON object")
    return found


def _objects(text: str) -> list[dict[str, Any]]:
    found = _json(text) if text.strip() else []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Unreadable("an answer of gcloud is no JSON list of objects")
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unreadable(f"an answer of gcloud is no JSON ({error})") from error


def _queued(found: Mapping[str, Any]) -> Queued:
    try:
        state = found["state"]
        spec = (found.get("tpu", {}).get("nodeSpec") or [{}])[0]
        several = spec.get("multisliceParams") or spec.get("multiNodeParams") or {}
        error = state.get("failedData", {}).get("error", {})
        return Queued(
            _last(found["name"]),
            state["state"],
            found.get("createTime", ""),
            _accelerator(spec.get("node", {})),
            _zone(found["name"]),
            dict(spec.get("node", {}).get("labels", {})),
            int(several.get("nodeCount", 1)),
            "spot" in found,
            int(error.get("code", 0)),
            str(error.get("message", "")),
            str(spec.get("nodeId") or several.get("nodeIdPrefix") or ""),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreadable(f"a queued resource lacks what the API gives ({error!r})") from error


def _node(found: Mapping[str, Any]) -> Node:
    try:
        return Node(
            _last(found["name"]),
            found.get("state", "STATE_UNSPECIFIED"),
            found.get("createTime", ""),
            _accelerator(found),
            _zone(found["name"]),
            found.get("health", ""),
            dict(found.get("labels", {})),
            _last(found.get("queuedResource", "")),
            tuple(each.get("ipAddress", "") for each in found.get("networkEndpoints", [])),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreadable(f"a TPU VM lacks what the API gives ({error!r})") from error


def _accelerator(found: Mapping[str, Any]) -> str:
    if found.get("acceleratorType"):
        return _last(found["acceleratorType"])
    config = found.get("acceleratorConfig") or {}
    kind = str(config.get("type", "")).lower().replace("v5lite_pod", "v5litepod")
    return f"{kind}:{config.get('topology', '')}" if config else ""


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _zone(name: str) -> str:
    matched = re.search(r"/locations/([^/]+)/", name)
    return matched[1] if matched else ""
