"""What is wrong, by what hosts say of themselves: pure functions of facts."""

import collections
import dataclasses
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launch.hosts.finding import Finding

SKEW = 5.0  # seconds that clocks may differ: what is newest is told by them, and who is silent
LEAST = 1e9  # bytes of a disk, below which it will soon be full
# By what ssh or the host's shell says.
_REMEDIES = {
    "Host key verification failed": "log in there once by hand, and accept its key",
    "Permission denied": "have ssh log in there by a key, without a password",
    "Could not resolve hostname": "name another host, or an alias of ssh's config",
    "python3": "install python3 there",
}
# Variables by which training would refuse to start, or wait for processes of another job.
_OF_ANOTHER_JOB = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Expected:
    """What all hosts should have."""

    revision: str | None = None  # of the code
    own_code: bool = True  # that the launcher has sent, rather than a checkout


def findings(facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> list[Finding]:
    """Returns what is wrong, host by host, in the order of the hosts.

    Args:
      facts: what ``remote.probe`` found on each host; with ``skew``, seconds that its clock is
        ahead of this one, and ``uncertain``, how exactly that is known.
      expected: of all of them.
    """
    found = [
        *_code(facts, expected),
        *_differing(facts, "config", _config, "the config", "see that all read the same files"),
        *_packages(facts),
        *_differing(facts, "devices", _devices, "devices", "see that all devices of it are there"),
        *(finding for host, fact in facts.items() for finding in _alone(host, fact)),
    ]
    order = list(facts)
    return sorted(found, key=lambda finding: (not finding.fatal, order.index(finding.host)))


def unreachable(host: str, reason: str) -> Finding:
    """Returns that a host cannot be reached, or runs nothing of ours."""
    remedy = "see that it runs, and that ssh logs in there without a password"
    for said, what in _REMEDIES.items():
        if said in reason:
            remedy = what
    return Finding(host, f"{host} cannot be reached ({reason}); {remedy}.", passing=True)


def port(
    first: str,
    listening: Mapping[str, Any],
    reached: Mapping[str, Mapping[str, Any]],
    address: str,
    number: int,
) -> list[Finding]:
    """Returns what is wrong with the coordinator's port.

    Args:
      first: host of the coordinator.
      listening: what listening there gave.
      reached: what connecting from each of the other hosts gave.
      address: of the coordinator.
      number: the port.
    """
    if "taken" in listening:
        by = f" by {listening['taken']}" if listening["taken"] else ""
        return [
            Finding(
                first,
                f"port {number} of {first}, the coordinator's, is taken{by}; end that, or give "
                "another --coordinator_port.",
                passing=True,
            )
        ]
    if "error" in listening:
        said = f"{first} cannot listen at port {number} ({listening['error']})"
        return [Finding(first, f"{said}; give another --coordinator_port.")]
    return [
        Finding(
            host,
            f"{host} cannot reach the coordinator, port {number} of {first} ({address}: "
            f"{one['error']}); open that port to it in the firewall, or name another by "
            "--coordinator_port, or another address of it by --coordinator.",
            passing=True,
        )
        for host, one in reached.items()
        if "error" in one
    ]


def _code(facts: Mapping[str, Mapping[str, Any]], expected: Expected) -> Iterator[Finding]:
    for host, fact in facts.items():
        code = fact["code"]
        if not code["there"]:
            if expected.own_code:
                said = f"{host} has no code yet, so its config, packages and devices were not seen"
                yield Finding(host, f"{said}; launch.ssh sends it, and looks again.", fatal=False)
            else:
                yield Finding(host, f"{host} has no {code['folder']}; clone the code there.")
            continue
        revision = code.get("revision")
        if not code["differing"] and (not expected.revision or revision == expected.revision):
            continue
        names = code["differing"]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"{names[0]}{more} differ{'' if more else 's'} there" if names else ""
        known = f"revision {revision or 'unknown'}, not {expected.revision or 'unknown'}"
        said = "; ".join(part for part in (known * (revision != expected.revision), what) if part)
        remedy = (
            f"delete {code['folder']} there, and launch again"
            if expected.own_code
            else f"check out {expected.revision or 'the same revision'} there, unchanged"
        )
        yield Finding(host, f"{host} has other code ({said}); {remedy}.")


def _config(fact: Mapping[str, Any]) -> Any:
    return ((fact.get("packages") or {}).get("config") or {}).get("digest")


def _saved_bytes(fact: Mapping[str, Any]) -> float:
    """Returns about how many bytes a saved step has; 0 where that is not known."""
    return float(((fact.get("packages") or {}).get("config") or {}).get("bytes") or 0)


def _devices(fact: Mapping[str, Any]) -> Any:
    devices = (fact.get("packages") or {}).get("devices") or {}
    return f"{devices['count']} x {devices['kind']}" if "count" in devices else None


def _packages(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    names = {
        name for fact in facts.values() for name in (fact.get("packages") or {}).get("packages", {})
    }
    for name in sorted(names):

        def version(fact: Mapping[str, Any], name: str = name) -> Any:
            known = (fact.get("packages") or {}).get("packages")
            return None if known is None else known.get(name) or "none"

        remedy = "install requirements.lock there"
        yield from _differing(facts, name, version, name, remedy)


def _differing(
    facts: Mapping[str, Mapping[str, Any]],
    topic: str,
    value: Callable[[Mapping[str, Any]], Any],
    what: str,
    remedy: str,
) -> Iterator[Finding]:
    """Yields the hosts that differ from most of the others; those that say nothing do not."""
    del topic
    known = {host: found for host, fact in facts.items() if (found := value(fact)) is not None}
    if len(set(known.values())) < 2:
        return
    usual, _ = collections.Counter(known.values()).most_common(1)[0]
    for host, found in known.items():
        if found != usual:
            yield Finding(host, f"{what} of {host}: {found}, where others have {usual}; {remedy}.")


def _alone(host: str, fact: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields what is wrong with a host, whatever the others say."""
    yield from _disk(host, fact["disk"], _saved_bytes(fact), "--workdir")
    if fact["kept"]["folder"] != fact["disk"]["folder"]:
        yield from _disk(host, fact["kept"], 0.0, "--root")
    packages = fact.get("packages") or {}
    if "error" in packages:
        busy = ", perhaps as another process has the devices" if packages.get("slow") else ""
        yield Finding(
            host,
            f"the environment on {host} does not tell what it has ({packages['error']}{busy}); "
            "try it there by hand.",
            passing=True,
        )
    for topic, remedy in (
        ("config", "mend the config, or what it reads on that host"),
        ("store", "give that host credentials for the store, or name another --workdir"),
        ("devices", "see that its driver is installed and no other process has them"),
    ):
        if "error" in (packages.get(topic) or {}):
            yield Finding(host, f"{topic} of {host}: {packages[topic]['error']}; {remedy}.")
    for one in fact["busy"]:
        yield Finding(
            host,
            f"{', '.join(one['devices'])} of {host} is in use by process {one['pid']} "
            f"({one['command']}); end it there: kill {one['pid']}.",
            fatal=False,  # it may be a desktop's, or a service that looks after them
        )
    stale = sorted(n for n in fact["variables"] if n.startswith(_OF_ANOTHER_JOB))
    if stale:
        listed = ", ".join(f"{name}={fact['variables'][name]}" for name in stale)
        yield Finding(
            host,
            f"{host} sets {listed}, left from another job; take that out of its shell's start-up "
            "files or /etc/environment.",
        )
    if abs(fact.get("skew", 0.0)) - fact.get("uncertain", 0.0) > SKEW:
        where = "ahead of" if fact["skew"] > 0 else "behind"
        yield Finding(
            host,
            f"the clock of {host} is {abs(fact['skew']):.0f} s {where} this machine's; start a "
            "time service there, such as chrony.",
            fatal=False,
        )
    yield from _name(host, fact, packages)


def _disk(host: str, disk: Mapping[str, Any], needed: float, flag: str) -> Iterator[Finding]:
    if "error" in disk:
        yield Finding(
            host,
            f"{disk['folder']} on {host} cannot be written ({disk['error']}); free space there, "
            f"make it writable, or name another {flag}.",
        )
    elif disk.get("free", LEAST) < max(LEAST, 2 * needed):
        step = f", and a saved step takes about {needed / 1e9:.1f} GB" * bool(needed)
        yield Finding(
            host,
            f"{disk['folder']} on {host} has {disk['free'] / 1e9:.1f} GB left{step}; free space "
            f"there, or name another {flag}.",
            fatal=disk["free"] < needed,
        )


def _name(host: str, fact: Mapping[str, Any], packages: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields a name by which a host cannot be found; CPUs tell each other theirs."""
    if (packages.get("devices") or {}).get("platform") not in (None, "cpu"):
        return
    known = fact["address"]
    if "error" in known:
        yield Finding(
            host,
            f"{host} does not know its own name {fact['host']} ({known['error']}), by which CPUs "
            "find each other; add it with its address to /etc/hosts there.",
            fatal="devices" in packages,
        )
    elif ipaddress.ip_address(known["address"]).is_loopback:
        yield Finding(
            host,
            f"{host} takes its own name {fact['host']} for {known['address']}, where other hosts "
            "do not find it if they run on CPUs; give its true address in /etc/hosts there.",
            fatal=False,
        )
