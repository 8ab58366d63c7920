"""The texts of the test double: what gcloud takes, prints and complains of. Sources: ``cloud``."""

import dataclasses
from collections.abc import Sequence
from typing import Any

PROJECT = "my-project"

_VALUES = (
    *("zone", "project", "node-id", "node-count", "node-prefix", "accelerator-type", "type"),
    *("topology", "runtime-version", "valid-until-duration", "labels", "format", "reservation"),
    *("worker", "command", "ssh-flag"),
)
_SWITCHES = ("spot", "reserved", "quiet", "force", "async")


@dataclasses.dataclass
class Answer:
    """What a command gives; no status where none comes."""

    status: int | None
    out: str = ""
    err: str = ""


class Refused(Exception):
    """The API says no."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.text, self.status = text, status


REFUSALS = dict(
    quota="RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' "
    "has been exceeded. Limit: 8 in zone us-west4-a.",
    stockout='{\n  "code": 8,\n  "message": "There is no more capacity in the zone '
    '\\"us-west4-a\\"; '
    "you can try in another zone where Cloud TPU Nodes are offered (see "
    'https://cloud.google.com/tpu/docs/regions) [EID: 0xe1d1ce9f2eae7a03]"\n}',
    denied="PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on resource "
    "'projects/my-project/locations/us-west4-a' (or it may not exist).",
    logged_out="There was a problem refreshing your current auth tokens: Reauthentication failed. "
    "cannot prompt during non-interactive execution.\nPlease run:\n\n  $ gcloud auth login\n\nto "
    "obtain new credentials.",
    bad="INVALID_ARGUMENT: Cloud TPU received a bad request. The requested accelerator "
    'configuration for accelerator type, "v5litepod-8", could not be found in the zonal '
    'accelerator configurations for "us-west4-a".; the accelerator v5litepod-8 was not found in '
    "zone us-west4-a [EID: 0x5be9ca996f9773a4]",
)
TROUBLE = (
    "UNAVAILABLE: The service is currently unavailable.",
    "INTERNAL: Internal error encountered.",
    "DEADLINE_EXCEEDED: Deadline expired before operation could complete.",
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'API requests' and limit 'API requests "
    "per minute' of service 'tpu.googleapis.com' for consumer 'project_number:1'.",
    "HTTPError 503: The service is currently unavailable.",
    "There was a problem refreshing your current auth tokens: HTTPSConnectionPool("
    "host='oauth2.googleapis.com', port=443): Max retries exceeded with url: /token",
    "gcloud crashed (ConnectionError): ('Connection aborted.', ConnectionResetError(104, "
    "'Connection reset by peer'))",
)


def parsed(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    positional, flags = [], {}
    for word in words[1:]:
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name not in (_VALUES if equals else _SWITCHES):
            raise Refused(f"unrecognized arguments: {word}", 2)
        flags[name] = value
    return positional, flags


def full_name(kind: str, key: str) -> str:
    zone, _, name = key.partition("/")
    collection = dict(queued="queuedResources", nodes="nodes")[kind]
    return f"projects/{PROJECT}/locations/{zone}/{collection}/{name}"


def not_found(kind: str, key: str) -> str:
    return (
        f"NOT_FOUND: Resource '{full_name(kind, key)}' was not found. This command is "
        "authenticated as me@example.com which is the active account specified by the "
        "[core/account] property."
    )


# Virtual machines of a slice, by the page "TPU v5e" of the Cloud TPU documentation.
HOSTS = {"v5litepod-1": 1, "v5litepod-4": 1, "v5litepod-8": 1, "v5litepod-16": 4}


def described(kind: str, key: str, found: dict[str, Any]) -> dict[str, Any]:
    config = found["config"]
    shape = dict(acceleratorType=found["accelerator"]) if found["accelerator"] else {}
    if config:
        shape["acceleratorConfig"] = dict(config, type=config["type"].upper())
    common = dict(name=full_name(kind, key), createTime=found["created"])
    if kind == "nodes":
        full = full_name("queued", f"{key.partition('/')[0]}/{found['queued']}")
        # Of this machine, so that what runs on hosts can find the coordinator.
        known = range(1, 1 + HOSTS.get(found["accelerator"], 2))
        ends = [dict(ipAddress=f"127.0.{found['number'] % 250}.{n}", port=8470) for n in known]
        return (
            common
            | shape
            | dict(
                state=found["state"],
                **(dict(health=found["health"]) if found["health"] else {}),
                labels=found["labels"],
                id=found["uid"],
                networkEndpoints=ends if found["state"] == "READY" else [],
                **(dict(queuedResource=full) if found["queued"] else {}),
            )
        )
    node = shape | dict(labels=found["labels"], networkConfig=dict(enableExternalIps=True))
    spec: dict[str, Any] = dict(parent=f"projects/1/locations/{key.partition('/')[0]}", node=node)
    if found["several"]:
        spec["multisliceParams"] = dict(
            nodeCount=len(found["node_names"]), nodeIdPrefix=found["prefix"]
        )
    else:
        spec["nodeId"] = found["node_names"][0]
    state: dict[str, Any] = dict(state=found["state"])
    if found["error"]:
        state["failedData"] = dict(error=found["error"])
    if found["state"] in ("SUSPENDING", "SUSPENDED"):
        state["stateInitiator"] = "SERVICE"
    tier = dict(spot={}) if found["spot"] else {}
    return common | tier | dict(state=state, tpu=dict(nodeSpec=[spec]))
